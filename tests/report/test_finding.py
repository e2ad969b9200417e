from __future__ import annotations

from pathlib import Path

import pytest

from sail_train.data.writer import write_shards
from sail_train.report.finding import find_images
from sail_train.types import Conversation, Message, Part

PNG = b"\x89PNG\r\n\x1a\n"


def conversation(number: int, images: int) -> Conversation:
    content = (*(Part(type="image") for _ in range(images)), Part(type="text", text="Q"))
    said = Message(role="assistant", content=(Part(type="text", text="A"),))
    files = tuple(PNG + f"{number}.{image}".encode() for image in range(images))
    return Conversation(
        key=f"k{number}", source="s", messages=(Message(role="user", content=content), said), images=files
    )


@pytest.fixture
def config(tmp_path: Path) -> dict[str, object]:
    write_shards([conversation(number, images=number % 3) for number in range(6)], tmp_path, "s", 2)
    return {"data": {"sources": {"s": {"shards": f"{tmp_path}/*.tar"}}}}


def test_images_are_found_by_key_in_order(config: dict[str, object]) -> None:
    assert find_images(config, "s", "k5") == [PNG + b"5.0", PNG + b"5.1"]
    assert find_images(config, "s", "k1") == [PNG + b"1.0"]
    assert find_images(config, "s", "k3") == []


@pytest.mark.parametrize(("source", "key"), [("s", "unknown"), ("other", "k1"), ("", "")])
def test_what_is_not_there_is_not_found(config: dict[str, object], source: str, key: str) -> None:
    assert find_images(config, source, key) == []


def test_moved_and_broken_data_is_no_error(config: dict[str, object], tmp_path: Path) -> None:
    first, *others = sorted(tmp_path.glob("*.tar"))
    first.write_bytes(b"not a tar" * 200)
    assert find_images(config, "s", "k5") == [PNG + b"5.0", PNG + b"5.1"]
    for path in (first, *others):
        path.unlink()
    assert find_images(config, "s", "k5") == []
    assert find_images({"data": {"sources": {"s": {"shards": 3}}}}, "s", "k5") == []
    assert find_images({}, "s", "k5") == []
