"""What every layout of foreign records is read into, and the pieces that layouts share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sail_train.data.conversation import text
from sail_train.types import BadSample, Message, Part

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
"""Where an image or a video stands in the text of LLaVA's records and those like them."""
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

MediaRef = str | bytes | Mapping[str, Any]
"""A path, a data URL, base64, the bytes themselves, or Hugging Face's {"bytes", "path"}."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A foreign record, its images and videos not yet read."""

    messages: tuple[Message, ...]
    images: tuple[MediaRef, ...] = ()
    videos: tuple[MediaRef, ...] = ()
    rejected: str | None = None
    """The worse of two answers, where the last message is the better one."""


def role(name: Any) -> str:
    """Our name of a speaker."""
    if not isinstance(name, str) or name not in ROLES:
        raise BadSample("bad_role", f"{name!r:.80} is none of {', '.join(ROLES)}")
    return ROLES[name]


def said(record: Mapping[str, Any], name: str, *, where: str = "record", blank: str = "bad_messages") -> str:
    """A text that has to be there; `blank` is the reason for one that says nothing."""
    value = record.get(name)
    if isinstance(value, str) and not value.strip():
        raise BadSample(blank, f"{name!r} of the {where} is blank")
    if not isinstance(value, str):
        raise BadSample("bad_messages", f"{name!r} of the {where} is {value!r:.60}, not a text")
    return text(value)


def plain(role_name: str, content: str) -> Message:
    """A message of text alone, in which no mark is looked for."""
    return Message(role=role_name, content=(Part(type="text", text=text(content)),))


def marks(texts: Sequence[str], videos: Sequence[MediaRef], images: Sequence[MediaRef]) -> dict[str, str]:
    """What stands for what in a record's texts.

    "<video>" is a mark only where there are videos: it is a word of HTML too. LLaVA-Video and others mark a film by
    "<image>": so it is read where the record has films, no pictures, and "<video>" nowhere.
    """
    if not videos:
        return {IMAGE_MARK: "image"}
    if not images and not any(VIDEO_MARK in each for each in texts):
        return {IMAGE_MARK: "video"}
    return {IMAGE_MARK: "image", VIDEO_MARK: "video"}


def split_marks(content: str, kinds: Mapping[str, str]) -> tuple[Part, ...]:
    """Text with marks -> parts. The one newline that LLaVA puts beside a mark is part of the mark."""
    pattern = "|".join(map(re.escape, kinds))
    pieces = re.split(rf"\n?({pattern})\n?", text(content))
    parts = [
        Part(type=kinds[piece]) if place % 2 else Part(type="text", text=piece) for place, piece in enumerate(pieces)
    ]
    return tuple(part for part in parts if part.type != "text" or part.text)


def media_refs(record: Mapping[str, Any], kind: str) -> tuple[MediaRef, ...]:
    """The record's own list of images or videos: "image" or "images", one or several; nulls are none."""
    refs: list[MediaRef] = []
    for name in (kind, f"{kind}s"):
        value = record.get(name)
        several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        refs.extend(ref for ref in (value if several else [value]) if ref is not None and ref != "")  # type: ignore[union-attr]
    return tuple(refs)


def placed(imported: Imported, *, prepend: bool) -> Imported:
    """The record itself, if every image and video has its place in the text.

    With `prepend`, a record that marks nothing at all shows them first, ahead of the first question.

    Raises:
        BadSample: "image_count", "video_count".
    """
    given = {"image": len(imported.images), "video": len(imported.videos)}
    found = {kind: sum(part.type == kind for each in imported.messages for part in each.content) for kind in given}
    if prepend and not any(found.values()) and any(given.values()):
        return _prepended(imported, given)
    for kind, count in given.items():
        if found[kind] != count:
            remedy = "; --marks prepend shows them first" if not prepend and not any(found.values()) else ""
            raise BadSample(f"{kind}_count", f"{found[kind]} {kind} placeholders for {count} {kind}s{remedy}")
    return imported


def _prepended(imported: Imported, given: Mapping[str, int]) -> Imported:
    shown = tuple(Part(type=kind) for kind, count in given.items() for _ in range(count))
    messages = list(imported.messages)
    first = next((place for place, each in enumerate(messages) if each.role == "user"), None)
    if first is None:
        raise BadSample("bad_messages", "no user's message in which the images could stand")
    messages[first] = Message(role="user", content=shown + messages[first].content)
    return Imported(
        messages=tuple(messages), images=imported.images, videos=imported.videos, rejected=imported.rejected
    )
