"""The files of a sample out of its bytes: at a glance, and member by member."""

from __future__ import annotations

import io
import random
import tarfile

import pytest

from sail_train.data import cut
from sail_train.data.cut import read_sample
from sail_train.types import BadSample

NAMES = ["a.json", "a.jpg", "a.0.jpg", "A.JPG", "b.txt", "folder/a.json", "folder/a.png", "../a.json", "/a.json",
         "a/../a.json", "a.pkl", "a", ".json", "a.", "a..json", "ä.png", "a b.txt", "C:a.json", "a\\b.json",
         "n" * 99 + ".txt", "x" * 140 + "/y.txt"]  # fmt: skip


def archive(members: list[tarfile.TarInfo], rng: random.Random) -> bytearray:
    """Without an end mark, as the span of a sample is."""
    content = bytearray()
    for member in members:
        content += member.tobuf(rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
        size = member.size if member.isreg() else 0
        content += rng.randbytes(min(size, 2000)) + bytes(-size % 512)
    return content


def plain(*names: str) -> memoryview:
    rng, members = random.Random(0), [tarfile.TarInfo(name) for name in names]
    for member in members:
        member.size = 700
    return memoryview(archive(members, rng))


def summed(header: bytes) -> bytes:
    """With the sum that belongs to it."""
    info = sum(header[:148]) + sum(header[156:512]) + 8 * 32
    return header[:148] + b"%06o\0 " % info + header[156:512]


def outcome(block: memoryview, *, check: bool) -> object:
    try:
        return cut._member_by_member(block, check=check)
    except BadSample:
        return None


@pytest.mark.parametrize("indexed", [True, False])
def test_at_a_glance_finds_what_member_by_member_does_or_leaves_it(indexed: bool) -> None:
    """For samples of all kinds of headers, whole and damaged, cut off and with something behind."""
    rng, taken = random.Random(0), 0
    for turn in range(3000):
        likely = rng.choice([NAMES[:4], NAMES[5:7], NAMES])
        members = [tarfile.TarInfo(rng.choice(likely)) for _ in range(rng.choice([1, 2, 2, 3]))]
        for member in members:
            member.size = rng.choice([0, 7, 512, 700, 8**7]) if turn % 9 == 0 else rng.choice([0, 7, 512, 700])
            member.type = rng.choice([tarfile.REGTYPE] * 20 + [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.AREGTYPE])
        content = archive(members, rng)
        for _ in range(rng.choice([0, 0, 1, 2])):
            place = rng.choice([rng.randrange(512), rng.randrange(124, 157)])
            content[place] = rng.choice([*b"0789 \0-/.", 0x80, 0xFF])
        if indexed:  # a header without its sum is not met: the bytes have the checksum of the index
            content[:512] = summed(bytes(content[:512]))
        length = rng.choice([len(content)] * 8 + [len(content) - 512, rng.randrange(len(content)), len(content) + 512])
        block = memoryview(bytes(content[:length].ljust(length, b"\0")))
        found = cut._at_a_glance(block, sums=not indexed)
        if found is not None:
            assert found == outcome(block, check=True), bytes(block)
            assert found == outcome(block, check=indexed), bytes(block)
        taken += found is not None
    assert taken > 300, "it is taken at all"


def test_a_plain_sample_is_read_at_a_glance() -> None:
    block = plain("folder/a-1.json", "folder/a-1.0.JPG")
    key, files = read_sample(block, indexed=True)
    assert key == "folder/a-1" and {name: len(file) for name, file in files.items()} == {"json": 700, "0.jpg": 700}
    assert cut._at_a_glance(block, sums=True) == (key, files)


def test_a_header_that_changed_since_the_shard_was_walked_through_is_noticed() -> None:
    content = bytearray(plain("a.json"))
    content[110] ^= 1
    with pytest.raises(BadSample, match="no tar header"):
        read_sample(memoryview(content), indexed=False)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.json", "b.jpg"], "corrupt_shard"),
        (["a.json", "a.json"], "duplicate_file"),
        (["a.json", "a.pkl"], "refused_file"),
        (["../a.json"], "unsafe_name"),
        ([], "corrupt_shard"),
    ],
)
def test_a_span_that_lies_is_refused(names: list[str], reason: str) -> None:
    with pytest.raises(BadSample) as refused:
        read_sample(plain(*names), indexed=True)
    assert refused.value.reason == reason


def test_a_span_that_ends_inside_a_file_is_refused() -> None:
    block = plain("a.json", "a.jpg")
    with pytest.raises(BadSample) as refused:
        read_sample(block[:-512], indexed=True)
    assert refused.value.reason == "corrupt_shard"


def test_what_python_writes_is_read_as_python_reads_it() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for name in ("k.json", "k.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 1000
            out.addfile(info, io.BytesIO(name.encode() * 200))
    content = buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {member.name.removeprefix("k."): archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert read_sample(memoryview(content)[: 2 * (512 + 1024)], indexed=False) == ("k", files)
