"""A real processor over a tokenizer trained here, and shards written for the test."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.writer import write_shards
from sail_train.processor.processor import SailVLProcessor
from sail_train.processor.tokenizer import train_tokenizer
from sail_train.types import Conversation, Message, Part

WORDS = "red green blue one two three cat dog house tree count the what is in image answer".split()


@pytest.fixture(scope="session")
def processor() -> SailVLProcessor:
    return SailVLProcessor(train_tokenizer([" ".join(WORDS)] * 4, 320), image={"max_pixels": 112 * 112})


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sail_train.data.shard_file.WAITS", (0.0, 0.0))


def make_image(number: int, size: tuple[int, int] = (28, 28), kind: str = "PNG") -> bytes:
    """A picture of (height, width) that no other number has."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def make_sample(number: int, *, images: int = 1, words: int | None = None, side: int = 28, **more: Any) -> Conversation:
    """A conversation of a length that its number fixes."""
    rng = np.random.default_rng([7, number])
    count = words if words is not None else int(rng.integers(2, 30))
    answer = " ".join(WORDS[int(place)] for place in rng.integers(0, len(WORDS), count))
    content = (*(Part(type="image") for _ in range(images)), Part(type="text", text=f"what is in image {number}"))
    return Conversation(
        key=f"{number:06d}",
        source="made",
        messages=(
            Message(role="user", content=content),
            Message(role="assistant", content=(Part(type="text", text=answer),)),
        ),
        images=tuple(make_image(number * 10 + place, (side, side)) for place in range(images)),
        **{"answer": str(number), **more},
    )


def make_shards(folder: Path, name: str, numbers: Iterable[int], *, per_shard: int = 10, **more: Any) -> str:
    """Shards of one source; returns the pattern that names them."""
    samples = (make_sample(number, images=number % 3 != 0, **more) for number in numbers)
    write_shards(samples, folder / name, name, per_shard)
    return str(folder / name / "*.tar")


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """A tar of exactly these files, by Python's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def json_of(text: str = "red", *, images: int = 0, **more: Any) -> bytes:
    """A sample's .json."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": "what"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": text}]
    return json.dumps({"messages": messages, **more}).encode()


def pixel_broken_image() -> bytes:
    """A PNG whose header is right and whose pixels are cut off."""
    return make_image(5)[:-200]


@pytest.fixture(scope="session")
def mixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources with bad samples of every stage: refused files, bad JSON, too long, broken pixels."""
    folder = tmp_path_factory.mktemp("mixture")
    make_shards(folder, "first", range(60), per_shard=7)
    make_shards(folder, "second", range(100, 140), per_shard=20)
    spoilt = [("a.0.png", pixel_broken_image()), ("a.json", json_of(images=1))]
    broken = [("b.json", b"{"), ("c.pickle", b"x"), ("c.json", json_of())]
    long = [("d.json", json_of("red " * 400))]
    write_tar(folder / "second" / "zbad.tar", [*spoilt, *broken, *long, ("e.json", json_of())])
    return folder


@pytest.fixture
def mixture(mixture_folder: Path, tmp_path: Path) -> DataConfig:
    """A mixture of its own for each test, which may spoil it."""
    shutil.copytree(mixture_folder, tmp_path, dirs_exist_ok=True)
    return DataConfig(
        sources={
            "first": SourceConfig(shards=str(tmp_path / "first" / "*.tar"), weight=2.0, max_bad=1000, think_flag=0.5),
            "second": SourceConfig(shards=str(tmp_path / "second" / "*.tar"), max_bad=1000),
        },
        seq_length=160,
        max_patches=24,
        num_streams=4,
        batch_rows=4,
        shuffle_buffer=8,
        pack_buffer=5,
        prefetch=0,
    )


def take(iterator: Any, count: int) -> list[Any]:
    return list(itertools.islice(iterator, count))


@pytest.fixture
def make() -> SimpleNamespace:
    """The makers above, since test modules cannot import this one."""
    return SimpleNamespace(
        image=make_image,
        sample=make_sample,
        shards=make_shards,
        tar=write_tar,
        json=json_of,
        broken_image=pixel_broken_image,
        take=take,
        words=WORDS,
    )


@pytest.fixture
def folder(tmp_path: Path, make: SimpleNamespace) -> Path:
    """Four shards of ten samples."""
    make.shards(tmp_path, "s", range(40), per_shard=10)
    return tmp_path / "s"


@pytest.fixture
def two(tmp_path: Path, make: SimpleNamespace) -> DataConfig:
    """Sources a (40 samples) and b (20), in one stream, in the order in which they are drawn."""
    for name, numbers in (("a", range(40)), ("b", range(100, 120))):
        make.shards(tmp_path, name, numbers, per_shard=10)
    sources = {name: SourceConfig(shards=f"{tmp_path}/{name}/*.tar", max_bad=1000) for name in "ab"}
    return DataConfig(
        sources=sources, seq_length=160, num_streams=1, batch_rows=1, shuffle_buffer=1, pack_buffer=1, prefetch=0
    )
