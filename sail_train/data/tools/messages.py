"""OpenAI's chat messages, and what is built on them.

    {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"},
                                               {"type": "image_url", "image_url": {"url": "cat.jpg"}}]}, ...]}

An image part holds a path or a data URL, or nothing: then it is the next of the record's "images". A content that is
plain text may mark images by "<image>" if the record lists "images".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sail_train.data.conversation import text
from sail_train.data.tools.imported import ImageRef, Imported, check_count, image_refs, role, split_placeholders
from sail_train.types import BadSample, Message, Part

IMAGE_PARTS = ("image", "image_url", "input_image")
TEXT_PARTS = ("text", "input_text", "output_text")


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of these."""
    return "messages" in record


def read(record: Mapping[str, Any]) -> Imported:
    """Raises BadSample where the record does not make sense."""
    entries = record.get("messages")
    if not isinstance(entries, list) or not entries:
        raise BadSample("bad_messages", "'messages' must be a list of at least one message")
    listed = image_refs(record)
    waiting = iter(listed)
    messages: list[Message] = []
    images: list[ImageRef] = []
    for entry in entries:
        content, found = _content(entry, waiting, marked=bool(listed))
        messages.append(Message(role=role(entry.get("role")), content=content))
        images.extend(found)
    images.extend(waiting)  # listed, but with no place in the text: the count below says so
    check_count(messages, images)
    return Imported(messages=tuple(messages), images=tuple(images))


def _content(entry: Any, waiting: Iterator[ImageRef], *, marked: bool) -> tuple[tuple[Part, ...], list[ImageRef]]:
    """The parts of one message, and the images that they show."""
    content = entry.get("content") if isinstance(entry, Mapping) else None
    if isinstance(content, str):
        parts = split_placeholders(content) if marked else (Part(type="text", text=text(content)),)
        placeholders = [part for part in parts if part.type == "image"]
        # the images last: zip takes from its first argument before it looks whether the second is used up
        return parts, [ref for _, ref in zip(placeholders, waiting, strict=False)]
    if not isinstance(content, list):
        raise BadSample("bad_messages", f"message {entry!r:.80} has neither text nor parts under 'content'")
    parts_read, images = [], []
    for part in content:
        read_part, ref = _part(part)
        parts_read.append(read_part)
        if read_part.type == "image":
            ref = next(waiting, None) if ref is None else ref
            images.extend([] if ref is None else [ref])
    return tuple(parts_read), images


def _part(part: Any) -> tuple[Part, ImageRef | None]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return Part(type="text", text=text(part["text"])), None
    if kind not in IMAGE_PARTS:
        raise BadSample("bad_messages", f"part {part!r:.80} is neither a text nor an image")
    ref = next((part[name] for name in ("image_url", "image", "url", "path") if part.get(name) is not None), None)
    if isinstance(ref, Mapping) and "url" in ref:
        ref = ref["url"]
    return Part(type="image"), ref
