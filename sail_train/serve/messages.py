"""The messages of a request -> a conversation, its images out of data: URLs.

Images are measured from their headers here, under the caps of `processor.images`; their pixels are decoded later, by
the processor. That this is done by few threads at once is the server's.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from sail_train.processor.images import image_size
from sail_train.serve.protocol import RequestError
from sail_train.types import BadSample, Conversation, Message, Part

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""OpenAI's role -> ours."""

_PREFIX = "data:image/"


def read_messages(values: Any, *, max_images: int, max_messages: int) -> Conversation:
    """The conversation that a request goes on with; RequestError names the part that is wrong."""
    if not isinstance(values, list) or not 0 < len(values) <= max_messages:
        raise RequestError(f"messages must be a list of 1 to {max_messages} messages", param="messages")
    images: list[bytes] = []
    messages = []
    for number, value in enumerate(values):
        messages.append(_message(value, f"messages[{number}]", images))
        if len(images) > max_images:
            raise RequestError(f"messages have more than {max_images} images", param="messages", code="too_many_images")
    if messages[-1].role != "user":
        raise RequestError("the last message must be the user's", param=f"messages[{len(messages) - 1}].role")
    return Conversation(key="chat", source="chat", messages=tuple(messages), images=tuple(images))


def _message(value: Any, where: str, images: list[bytes]) -> Message:
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object with role and content", param=where)
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(ROLES)}", param=f"{where}.role")
    if value.get("tool_calls"):
        raise RequestError(f"{where}.tool_calls: tools are not offered", param=f"{where}.tool_calls")
    content = value.get("content")
    if isinstance(content, str):
        return Message(role=ROLES[role], content=(_text(content, f"{where}.content"),))
    if not isinstance(content, list) or not content:
        raise RequestError(f"{where}.content must be a text or a list of parts", param=f"{where}.content")
    parts = [_part(part, role, f"{where}.content[{number}]", images) for number, part in enumerate(content)]
    return Message(role=ROLES[role], content=tuple(parts))


def _part(value: Any, role: str, where: str, images: list[bytes]) -> Part:
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object with a type", param=where)
    if value.get("type") == "text" and isinstance(value.get("text"), str):
        return _text(value["text"], f"{where}.text")
    if value.get("type") != "image_url":
        raise RequestError(f"{where} must be {{type: text, text}} or {{type: image_url, image_url}}", param=where)
    if role != "user":
        raise RequestError(f"{where}: only a user's message holds images", param=where)
    image = value.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    images.append(read_image(url, f"{where}.image_url.url"))
    return Part(type="image")


def _text(text: str, where: str) -> Part:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{where} holds half a surrogate pair: no Unicode text", param=where) from None
    return Part(type="text", text=text)


def read_image(url: Any, where: str) -> bytes:
    """The bytes of an image in a data: URL, its header checked; RequestError otherwise."""
    if not isinstance(url, str):
        raise RequestError(f"{where} must be a text", param=where)
    if not url[: len(_PREFIX)].lower() == _PREFIX:
        raise RequestError(
            f"{where}: {_scheme(url)}; nothing is fetched here: send the image itself, as data:image/png;base64,...",
            param=where,
            code="unsupported_image_url",
        )
    head, _, data = url.partition(",")
    if not head.lower().endswith(";base64"):
        raise RequestError(f"{where}: only base64 is read, as in data:image/png;base64,...", param=where)
    try:
        image = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where} is no base64: {error}", param=where, code="invalid_image") from None
    try:
        image_size(image)
    except BadSample as error:
        raise RequestError(f"{where}: {error}", param=where, code="invalid_image") from None
    return image


def _scheme(url: str) -> str:
    scheme = url.partition(":")[0].lower() if ":" in url[:16] else ""
    return f"{scheme}: is no URL of an image itself" if scheme.isalnum() else "no data: URL of an image"
