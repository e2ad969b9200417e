"""What every layout of foreign records is read into, and the pieces that layouts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sail_train.data.conversation import text
from sail_train.types import BadSample, Message, Part

PLACEHOLDER = "<image>"
"""Where an image stands in the text of LLaVA's records and those like them."""
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

ImageRef = str | bytes | Mapping[str, Any]
"""A path, a data URL, the bytes themselves, or Hugging Face's {"bytes", "path"}."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A foreign record, its images not yet read."""

    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...]


def role(name: Any) -> str:
    """Our name of a speaker."""
    if not isinstance(name, str) or name not in ROLES:
        raise BadSample("bad_role", f"{name!r:.80} is none of {', '.join(ROLES)}")
    return ROLES[name]


def split_placeholders(content: str) -> tuple[Part, ...]:
    """Text with "<image>" marks -> parts. The one newline that LLaVA puts beside a mark is part of the mark."""
    pieces = text(content).split(PLACEHOLDER)
    parts: list[Part] = []
    for place, piece in enumerate(pieces):
        if place > 0:
            parts.append(Part(type="image"))
            piece = piece.removeprefix("\n")
        if place < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece:
            parts.append(Part(type="text", text=piece))
    return tuple(parts)


def image_refs(record: Mapping[str, Any]) -> tuple[ImageRef, ...]:
    """The record's own list of images: "image" or "images", one or several."""
    refs: list[ImageRef] = []
    for name in ("image", "images"):
        value = record.get(name)
        if value is not None:
            refs.extend(value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value])
    return tuple(refs)


def check_count(messages: Sequence[Message], images: Sequence[ImageRef]) -> None:
    """BadSample unless every image has its place in the text."""
    placeholders = sum(part.type == "image" for message in messages for part in message.content)
    if placeholders != len(images):
        raise BadSample("image_count", f"{placeholders} image placeholders for {len(images)} images")
