from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.writer import image_extension, write_shards
from sail_train.types import Conversation


def test_shards_hold_what_was_written(tmp_path: Path, make: SimpleNamespace) -> None:
    samples = [make.sample(number, images=number % 13, mode="direct", meta={"n": number}) for number in range(14)]
    paths = write_shards(samples, tmp_path, "made", 6)
    assert [path.name for path in paths] == ["made-000000.tar", "made-000001.tar", "made-000002.tar"]
    found = held_out({"made": SourceConfig(shards=str(tmp_path / "*.tar"))})
    for sample, read in zip(samples, found, strict=True):
        assert {**vars(read), "meta": read.meta} == {**vars(sample), "meta": {"source": "made", **sample.meta}}


def test_webdataset_itself_reads_them(tmp_path: Path, make: SimpleNamespace) -> None:
    import webdataset

    samples = [make.sample(number, images=1) for number in range(5)]
    write_shards(samples, tmp_path, "made", 3)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [(sample["__key__"], sample["0.png"]) for sample in read] == [(s.key, s.images[0]) for s in samples]
    assert json.loads(read[0]["json"])["messages"][0]["role"] == "user"


def test_the_same_samples_give_the_same_bytes(tmp_path: Path, make: SimpleNamespace) -> None:
    written = [
        write_shards((make.sample(number) for number in range(4)), tmp_path / name, "made", 4)[0] for name in "ab"
    ]
    assert written[0].read_bytes() == written[1].read_bytes()
    with tarfile.open(written[0]) as archive:
        owners = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.isreg()) for m in archive}
    assert owners == {(0, 0, 0, "", "", True)}


def test_files_may_be_given_as_webdataset_takes_them(tmp_path: Path, make: SimpleNamespace) -> None:
    write_shards([{"__key__": "x_1", "0.png": make.image(1), "json": make.json(images=1)}], tmp_path, "made", 4)
    assert held_out({"made": SourceConfig(shards=str(tmp_path / "*.tar"))})[0].key == "x_1"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_are_named_by_what_they_are(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    assert image_extension(buffer.getvalue()) == {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}[kind]
    with pytest.raises(ValueError, match="neither JPEG, PNG nor WebP"):
        image_extension(b"GIF89a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"key": "../a"}], "key '../a' must be a relative name without dots"),
        ([{"key": "/a"}], "key '/a' must be"),
        ([{"key": "a.b"}], "key 'a.b' must be"),
        ([{"key": ""}], "key '' must be"),
        ([{"key": "a"}, {"key": "a"}], "key 'a' is used twice in made-000000.tar"),
        ([{"images": (b"GIF89a",)}], "neither JPEG"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, make: SimpleNamespace, changes: list[dict[str, Any]], message: str
) -> None:
    samples = [Conversation(**{**vars(make.sample(1)), **change}) for change in changes]
    with pytest.raises(ValueError, match=message):
        write_shards(samples, tmp_path, "made", 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("files", [{"pkl": b""}, {"json": "text"}, {"0.gif": b""}])
def test_files_that_the_reader_refuses_are_not_written(tmp_path: Path, files: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="key 'a': '.*' must be bytes of a"):
        write_shards([{"__key__": "a", **files}], tmp_path, "made", 10)


def test_an_earlier_set_is_not_mixed_with_a_new_one(tmp_path: Path, make: SimpleNamespace) -> None:
    write_shards([make.sample(number) for number in range(4)], tmp_path, "made", 1)
    with pytest.raises(ValueError, match="made-000000.tar is there already; choose another prefix"):
        write_shards([make.sample(9)], tmp_path, "made", 1)
    write_shards([make.sample(9)], tmp_path, "made", 1, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["made-000000.tar"]
    with pytest.raises(ValueError, match="samples_per_shard=0"):
        write_shards([], tmp_path, "made", 0)


def test_a_failure_leaves_no_part_of_a_shard(tmp_path: Path, make: SimpleNamespace) -> None:
    def samples() -> Any:
        yield make.sample(0)
        yield make.sample(1)
        raise OSError("source gone")

    with pytest.raises(OSError, match="source gone"):
        write_shards(samples(), tmp_path, "made", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made-000000.tar", "made-000001.tar"]


def test_a_shard_is_replaced_whole_or_not_at_all(
    tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_shards([make.sample(1)], tmp_path, "made", 1)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_shards([make.sample(2)], tmp_path, "made", 1, overwrite=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
