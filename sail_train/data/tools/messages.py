"""OpenAI's chat messages, and what is built on them.

    {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"},
                                               {"type": "image_url", "image_url": {"url": "cat.jpg"}}]}, ...]}

An image or video part holds a path or a data URL, or nothing: then it is the next of the record's "images" or
"videos". A content that is plain text may mark them by "<image>" and "<video>" if the record lists some.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sail_train.data.conversation import text
from sail_train.data.tools.answers import check_calls, check_tools, check_turn, thought_of
from sail_train.data.tools.imported import Imported, MediaRef, marks, media_refs, role, split_marks
from sail_train.types import BadSample, Message, Part

KINDS = {
    "image": "image", "image_url": "image", "input_image": "image",
    "video": "video", "video_url": "video", "input_video": "video",
    "text": "text", "input_text": "text", "output_text": "text",
}  # fmt: skip
"""What a part's type says."""


@dataclass(kw_only=True)
class _Media:
    """A record's files of one kind."""

    listed: tuple[MediaRef, ...]
    waiting: Iterator[MediaRef] = field(init=False)
    """Of those listed, the ones that no part has shown yet."""
    shown: list[MediaRef] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = iter(self.listed)

    def show(self, ref: MediaRef | None) -> None:
        ref = next(self.waiting, None) if ref is None else ref
        self.shown.extend([] if ref is None else [ref])

    def all(self) -> tuple[MediaRef, ...]:
        """Those listed without a place in the text too: the count of places then says so."""
        return (*self.shown, *self.waiting)


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of these."""
    return "messages" in record


def read(record: Mapping[str, Any], under: str = "messages") -> Imported:
    """The messages in the field `under`; raises BadSample where the record does not make sense."""
    check_tools(record)
    entries = record.get(under)
    if not isinstance(entries, list) or not entries:
        raise BadSample("bad_messages", f"{under!r} must be a list of at least one message")
    media = {kind: _Media(listed=media_refs(record, kind)) for kind in ("image", "video")}
    kinds = _marks(entries, media)
    messages: list[Message] = []
    for entry in entries:
        content = _content(entry, media, kinds)
        speaker = role(entry.get("role"))
        check_turn(entry, speaker)
        messages.append(Message(role=speaker, content=thought_of(entry, content)))
    return Imported(messages=tuple(messages), images=media["image"].all(), videos=media["video"].all())


def plain_text(entry: Any) -> str:
    """The text of one message, its thought included; BadSample if it is no text alone."""
    content = _content(entry, {}, {})
    check_turn(entry, "assistant")
    content = thought_of(entry, content)
    return "".join(part.text for part in content)


def _marks(entries: list[Any], media: Mapping[str, _Media]) -> dict[str, str]:
    """None without listed files: "<image>" is then a word."""
    if not any(each.listed for each in media.values()):
        return {}
    texts = [entry["content"] for entry in entries if isinstance(entry, Mapping) and _is_text(entry)]
    return marks(texts, media["video"].listed, media["image"].listed)


def _is_text(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("content"), str)


def _content(entry: Any, media: Mapping[str, _Media], kinds: Mapping[str, str]) -> tuple[Part, ...]:
    """The parts of one message; the files that they show are noted in `media`."""
    content = entry.get("content") if isinstance(entry, Mapping) else None
    if isinstance(content, str):
        parts = split_marks(content, kinds) if kinds else (Part(type="text", text=text(content)),)
        for part in parts:
            if part.type != "text":
                media[part.type].show(None)
        return parts
    if not isinstance(content, list):
        check_calls(entry if isinstance(entry, Mapping) else {})
        raise BadSample("bad_messages", f"message {entry!r:.80} has neither text nor parts under 'content'")
    return tuple(_part(part, media) for part in content)


def _part(part: Any, media: Mapping[str, _Media]) -> Part:
    kind = KINDS.get(str(part.get("type"))) if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Part(type="text", text=text(part["text"]))
    if kind not in media:
        raise BadSample("bad_messages", f"part {part!r:.80} is neither a text, an image nor a video")
    names = (f"{kind}_url", kind, "url", "path")
    ref = next((part[name] for name in names if part.get(name) is not None), None)
    media[str(kind)].show(ref["url"] if isinstance(ref, Mapping) and "url" in ref else ref)
    return Part(type=str(kind))
