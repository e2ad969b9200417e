from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import SailVLProcessor, build_processor
from sail_train.processor.tokenizer import train_tokenizer
from sail_train.types import Conversation, Message, Part

SMALL = {"patch_size": 4, "max_pixels": 4096, "min_pixels": 64}
TEXTS = ["What is the sum of the digits in the grid?", "The first row holds 3 and 4, so the sum is 7.", "system user"]


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS * 10, 400).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processor(tokenizer_dir: Path) -> SailVLProcessor:
    return build_processor(ProcessorConfig(tokenizer=str(tokenizer_dir), image=SMALL))


@pytest.fixture(scope="session")
def encoded_image() -> Callable[..., bytes]:
    def make(width: int = 24, height: int = 16, *, fmt: str = "PNG", **options: Any) -> bytes:
        image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, fmt, **options)
        return buffer.getvalue()

    return make


def message(role: str, *parts: str | Part | None) -> Message:
    """A message of texts; None is an image."""
    kinds = {None: Part(type="image")}
    content = tuple(Part(type="text", text=part) if isinstance(part, str) else kinds.get(part, part) for part in parts)
    return Message(role=role, content=content)


@pytest.fixture(scope="session")
def make_message() -> Callable[..., Message]:
    return message


@pytest.fixture(scope="session")
def make_conversation() -> Callable[..., Conversation]:
    def make(*messages: Message, images: tuple[bytes, ...] = (), mode: str | None = None) -> Conversation:
        return Conversation(key="0", source="test", messages=messages, images=images, mode=mode)

    return make
