"""The "caption" format of public image-text shards: an image and a .txt -> a question-less conversation.

000042.jpg   000042.txt   (000042.json: the crawl's own record, kept in meta)
"""

from __future__ import annotations

from sail_train.data.conversation import read_images, read_json, text
from sail_train.types import BadSample, Conversation, Message, Part, RawSample


def parse(raw: RawSample) -> Conversation:
    """User: the images; assistant: the caption. BadSample without an image or a caption."""
    images = read_images(raw)
    if not images:
        raise BadSample("image_count", "a caption sample needs an image")
    if "txt" not in raw.members:
        raise BadSample("no_txt", f"has only {', '.join(sorted(raw.members))}")
    try:
        caption = text(raw.members["txt"].decode().strip())
    except UnicodeDecodeError as error:
        raise BadSample("bad_text", f"the .txt is not UTF-8: {error.reason} at byte {error.start}") from None
    if not caption:
        raise BadSample("bad_text", "the .txt is empty")
    return Conversation(
        key=raw.key,
        source=raw.source,
        messages=(
            Message(role="user", content=tuple(Part(type="image") for _ in images)),
            Message(role="assistant", content=(Part(type="text", text=caption),)),
        ),
        images=images,
        meta=read_json(raw) or {},
    )
