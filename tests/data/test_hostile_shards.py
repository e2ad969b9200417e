"""What a stranger may hand us: members and indexes that would do harm are named, and nothing of theirs is run."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from accounts import assert_adds_up, config_of, indexed, read_once  # noqa: E402

from sail_train.data import index  # noqa: E402
from sail_train.processor.processor import SailVLProcessor  # noqa: E402


class Trap:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def png_of(side: int) -> bytes:
    """A PNG of one colour, a few KB whatever its side."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def gif_of(frames: int) -> bytes:
    """A GIF of 2 x 2 pixels with that many frames."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(buffer, "GIF")
    whole = buffer.getvalue()
    begin = whole.index(b",\0\0\0\0")  # the first frame; the file ends with ";"
    return whole[:begin] + whole[begin:-1] * frames + b";"


def postscript(canary: Path) -> bytes:
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
        + f"({canary}) (w) file closefile\n(%pipe%touch {canary}) (w) file closefile\nshowpage\n".encode()
    )


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def pax_bomb(name: str) -> tarfile.TarInfo:
    """A member behind an extended header of many megabytes."""
    info = tarfile.TarInfo(name)
    info.pax_headers = {"comment": "x" * (8 << 20)}
    return info


def hostile(canary: Path, make: SimpleNamespace) -> dict[str, tuple[str, list[Any]]]:
    """By key: the reason that is written down, and the members."""
    evil, picture = pickle.dumps(Trap(canary)), make.json(images=1)
    refused = {
        f"r{place}": ("refused_file", [(f"r{place}.{extension}", evil), (f"r{place}.json", make.json())])
        for place, extension in enumerate("pickle pkl pyd pth pt npy npz bin py tar gif eps svg so".split())
    }
    return {
        **refused,
        "soft": ("not_a_file", [special("soft.json", tarfile.SYMTYPE, "/etc/passwd")]),
        "hard": ("not_a_file", [special("hard.json", tarfile.LNKTYPE, "/etc/passwd")]),
        "node": ("not_a_file", [special("node.json", tarfile.CHRTYPE)]),
        "block": ("not_a_file", [special("block.json", tarfile.BLKTYPE)]),
        "fifo": ("not_a_file", [special("fifo.json", tarfile.FIFOTYPE)]),
        "../up": ("unsafe_name", [("../up.json", make.json())]),
        "/abs": ("unsafe_name", [("/abs.json", make.json())]),
        "huge": ("image_too_large", [("huge.png", png_of(9000)), ("huge.json", picture)]),
        "eps": ("image_unreadable", [("eps.jpg", postscript(canary)), ("eps.json", picture)]),
        "gif": ("image_unreadable", [("gif.png", gif_of(10_000)), ("gif.json", picture)]),
        "url": ("image_unreadable", [("url.jpg", f"pipe:touch {canary}".encode()), ("url.json", picture)]),
    }


def write(path: Path, members: list[Any]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))


@pytest.mark.parametrize("with_index", [False, True])
def test_hostile_members_are_named_each_and_none_is_opened(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor, monkeypatch: pytest.MonkeyPatch, with_index: bool
) -> None:
    shards, canary = tmp_path / "shards", tmp_path / "canary"
    shards.mkdir()
    monkeypatch.chdir(tmp_path)
    samples = hostile(canary, make)
    members = [member for _, files in samples.values() for member in files]
    write(shards / "a.tar", [*members, *((f"good{number}.json", make.json()) for number in range(5))])
    assert len(png_of(9000)) < 20_000
    if with_index:
        indexed(shards)
    account = read_once(config_of(shards), processor)
    assert_adds_up(account, len(samples) + 5)
    assert account.reasons() == {(key, reason) for key, (reason, _) in samples.items()}
    assert sorted(account.trained) == [f"good{number}" for number in range(5)]
    assert not canary.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["shards"]


def test_an_index_that_calls_hostile_members_good_is_not_believed(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    shards, canary = tmp_path / "shards", tmp_path / "canary"
    shards.mkdir()
    samples = hostile(canary, make)
    members = [member for _, files in samples.values() for member in files]
    write(shards / "a.tar", [*members, *((f"good{number}.json", make.json()) for number in range(5))])
    table = index.build_index(str(shards / "a.tar"))
    index.write_index(str(shards / "a.tar"), table.drop_columns([index.BAD]))
    account = read_once(config_of(shards), processor)
    assert_adds_up(account, len(samples) + 5)
    assert account.reasons() == {(key, reason) for key, (reason, _) in samples.items()} and not canary.exists()


def test_an_index_whose_samples_overlap_is_refused(folder: Path, processor: SailVLProcessor) -> None:
    import pyarrow

    shard = str(folder / "s-000000.tar")
    table = index.build_index(shard)
    sizes = pyarrow.array([size * 2 for size in table.column("size").to_pylist()], pyarrow.int64())
    index.write_index(shard, table.set_column(table.schema.get_field_index("size"), "size", sizes))
    with pytest.raises(ValueError, match="its samples do not follow each other"):
        read_once(config_of(folder), processor)


def test_an_index_that_splits_samples_elsewhere_gets_bad_samples_not_wrong_ones(
    folder: Path, processor: SailVLProcessor
) -> None:
    import pyarrow

    shard = str(folder / "s-000000.tar")
    content = Path(shard).read_bytes()
    rows = index.build_index(shard).to_pylist()
    merged = [(rows[place]["offset"], rows[place]["size"] + rows[place + 1]["size"]) for place in range(0, 10, 2)]
    table = pyarrow.table(
        {
            "key": [rows[place]["key"] for place in range(0, 10, 2)],
            "offset": pyarrow.array([start for start, _ in merged], pyarrow.int64()),
            "size": pyarrow.array([size for _, size in merged], pyarrow.int64()),
            "crc32": pyarrow.array([zlib.crc32(content[s : s + n]) for s, n in merged], pyarrow.uint32()),
        }
    )
    index.write_index(shard, table)
    account = read_once(config_of(folder), processor)
    assert Counter(record["reason"] for record in account.records) == {"corrupt_shard": 5}
    assert_adds_up(account, 35)


def test_a_pax_bomb_ends_its_shard_with_a_name_and_is_not_held_in_memory(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.json", "b.json"):
            info = tarfile.TarInfo(name)
            info.size = len(make.json())
            archive.addfile(info, io.BytesIO(make.json()))
        archive.addfile(pax_bomb("c.json"))
    account = read_once(config_of(tmp_path, on_bad_shard="skip"), processor)
    assert_adds_up(account, 3)
    assert account.reasons() == {("", "corrupt_shard")} and "extended header" in account.records[0]["detail"]


def test_a_gif_of_ten_thousand_frames_is_refused_by_its_first_bytes(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    gif = gif_of(10_000)
    assert Image.open(io.BytesIO(gif)).n_frames == 10_000
    members = [("a.webp", gif), ("a.json", make.json(images=1)), ("b.json", make.json())]
    make.tar(tmp_path / "a.tar", members)
    account = read_once(config_of(tmp_path), processor)
    assert_adds_up(account, 2)
    assert account.reasons() == {("a", "image_unreadable")}
