"""The blind control: the same question over a grey image, so that what is still answered was not seen."""

from __future__ import annotations

import dataclasses
import io

from PIL import Image

from sail_train.processor.images import image_size
from sail_train.types import Conversation

GREY = (128, 128, 128)


def blank_image(data: bytes) -> bytes:
    """A mid-grey PNG of the size of the image `data`; BadSample if that is no image we take."""
    height, width = image_size(data)
    file = io.BytesIO()
    Image.new("RGB", (width, height), GREY).save(file, format="PNG")
    return file.getvalue()


def blank(conversation: Conversation) -> Conversation:
    """`conversation` with every image replaced by `blank_image`."""
    return dataclasses.replace(conversation, images=tuple(blank_image(image) for image in conversation.images))
