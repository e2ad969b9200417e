"""The "messages" format: a sample's .json, images and videos -> a checked Conversation.

    000042.0.jpg 000042.1.png     images in order (one image may be just 000042.jpg)
    000042.0.mp4                  videos likewise, counted by themselves (.mp4, .webm, .mkv, .mov, .avi)
    000042.json                   {"messages": [{"role", "content": [{"type": "image"} | {"type": "video"} |
                                                                     {"type": "text", "text"}]}],
                                   "answer", "verifier", "mode": "think" | "direct", "source", "meta"}

Whatever is wrong is a BadSample. A content may be a plain string: a text part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sail_train.data.tar import IMAGES, VIDEOS
from sail_train.types import BadSample, Conversation, Message, Part, RawSample

ROLES = ("system", "user", "assistant")
MODES = ("think", "direct", None)
MAX_JSON_BYTES = 8 << 20
"""Longer text is no sample: parsing it would cost hundreds of megabytes."""


def parse(raw: RawSample) -> Conversation:
    """The conversation of one sample; BadSample if its files do not make one."""
    data = read_json(raw)
    if data is None:
        raise BadSample("no_json", f"has only {', '.join(sorted(raw.members))}")
    messages = read_messages(data.get("messages"))
    images, videos = read_images(raw), read_videos(raw)
    for kind, files in (("image", images), ("video", videos)):
        placeholders = sum(part.type == kind for message in messages for part in message.content)
        if placeholders != len(files):
            raise BadSample(f"{kind}_count", f"{placeholders} {kind} parts for {len(files)} {kind}s")
    meta = _typed(data, "meta", dict) or {}
    origin = _typed(data, "source", str)
    mode = _typed(data, "mode", str)
    if mode not in MODES:
        raise BadSample("bad_field", f"mode={mode!r} must be 'think', 'direct' or null")
    return Conversation(
        key=raw.key,
        source=raw.source,
        messages=messages,
        images=images,
        videos=videos,
        answer=_typed(data, "answer", str),
        verifier=_typed(data, "verifier", str),
        mode=mode,
        # metrics go by the mixture's name of a source; the sample's own is kept
        meta={"source": origin, **meta} if origin is not None else meta,
    )


def read_json(raw: RawSample) -> dict[str, Any] | None:
    """The sample's .json, None if there is none."""
    content = raw.members.get("json")
    if content is None:
        return None
    if len(content) > MAX_JSON_BYTES:
        raise BadSample("too_large", f"the .json has {len(content)} bytes, the limit is {MAX_JSON_BYTES}")
    try:
        # crawls write NaN, which is no JSON, for "unknown"
        data = json.loads(content, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise BadSample("bad_json", f"{type(error).__name__}: {error}") from None
    if not isinstance(data, dict):
        raise BadSample("bad_json", f"is {_kind(data)}, not an object")
    return data


def read_images(raw: RawSample) -> tuple[bytes, ...]:
    """The sample's images by their numbers, which must run from 0 (or be left out for a single image)."""
    return _numbered(raw, "image", IMAGES)


def read_videos(raw: RawSample) -> tuple[bytes, ...]:
    """The sample's videos by their numbers, which run as those of images do."""
    return _numbered(raw, "video", VIDEOS)


def _numbered(raw: RawSample, name: str, extensions: frozenset[str]) -> tuple[bytes, ...]:
    numbered: dict[int, bytes] = {}
    for extension, content in raw.members.items():
        number, dot, kind = extension.rpartition(".")
        if kind not in extensions:
            continue
        if dot and not (number.isascii() and number.isdigit()):
            raise BadSample(f"bad_{name}_name", f"{name} {extension!r}: its number should stand before .{kind}")
        if (place := int(number or 0)) in numbered:
            raise BadSample(f"bad_{name}_name", f"{name} {extension!r}: there is another with number {place}")
        numbered[place] = content
    if sorted(numbered) != list(range(len(numbered))):
        raise BadSample(f"bad_{name}_name", f"{name} numbers {sorted(numbered)} do not run from 0 without a gap")
    return tuple(numbered[place] for place in range(len(numbered)))


def read_messages(data: Any) -> tuple[Message, ...]:
    """Messages of parts out of the JSON list `data`."""
    if not isinstance(data, list) or not data:
        raise BadSample("bad_messages", "'messages' must be a list of at least one message")
    return tuple(_message(entry) for entry in data)


def _message(data: Any) -> Message:
    if not isinstance(data, Mapping) or data.get("role") not in ROLES:
        role = data.get("role") if isinstance(data, Mapping) else data
        raise BadSample("bad_messages", f"role {role!r:.80} is none of {', '.join(ROLES)}")
    content = data.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise BadSample("bad_messages", f"the content of a {data['role']} message is {_kind(content)}, not a list")
    return Message(role=data["role"], content=tuple(_part(entry) for entry in content))


def _part(data: Any) -> Part:
    kind = data.get("type") if isinstance(data, Mapping) else None
    if kind in ("image", "video"):
        return Part(type=kind)
    if kind != "text" or not isinstance(data.get("text"), str):
        raise BadSample("bad_messages", f"part {data!r:.80} is neither an image, a video nor a text")
    return Part(type="text", text=text(data["text"]))


def text(content: str) -> str:
    """`content`, if it is text; JSON can smuggle in halves of characters that no tokenizer takes."""
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise BadSample("bad_text", f"{error.reason} at character {error.start}") from None
    return content


def _typed(data: Mapping[str, Any], name: str, kind: type) -> Any:
    value = data.get(name)
    if value is not None and not isinstance(value, kind):
        raise BadSample("bad_field", f"{name}={value!r:.80} is {_kind(value)}, not {kind.__name__}")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
