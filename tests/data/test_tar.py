"""The tar reader against Python's, and against archives made to harm."""

from __future__ import annotations

import io
import pickle
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sail_train.data import tar
from sail_train.data.cut import read_sample
from sail_train.types import BadSample


def reader(content: bytes) -> tar.Read:
    return lambda offset, length: content[offset : offset + length]


def index(content: bytes) -> tar.Index:
    return tar.index(reader(content), len(content))


def reasons(content: bytes) -> list[tuple[str, str]]:
    return [(key, error.reason) for key, error in index(content).bad.values()]


def good(content: bytes) -> dict[str, dict[str, bytes]]:
    found = index(content)
    samples = {}
    for place in range(len(found)):
        if place not in found.bad:
            start, end = found.span(place)
            key, files = read_sample(memoryview(content)[start:end], indexed=False)
            samples[key] = files
    return samples


def archive(*members: tarfile.TarInfo | tuple[str, bytes], **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as out:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                out.addfile(info, io.BytesIO(member[1]))
            else:
                out.addfile(member)
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_equal_those_of_pythons_tarfile(form: int) -> None:
    folder = "d" * 90 + "/" + "e" * 40
    names = ["a.json", "a.0.jpg", "x/b.JSON", f"{folder}/c.json", f"{folder}/c.1.png"]
    if form != tarfile.USTAR_FORMAT:
        names += ["f" * 300 + ".json", "ümläut/日本.json"]
    content = archive(*((name, name.encode() * 50) for name in names), format=form)
    expected: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as theirs:
        for member in theirs:
            key, extension = tar.split_name(member.name)
            expected.setdefault(key, {})[extension] = theirs.extractfile(member).read()  # type: ignore[union-attr]
    assert good(content) == expected
    assert index(content).bad == {}


def test_extended_headers_with_times_and_zero_size_files_are_read() -> None:
    info = tarfile.TarInfo("a.json")
    info.mtime, info.size = 12.5, 0
    content = archive(info, ("b.json", b"1"), format=tarfile.PAX_FORMAT)
    assert good(content) == {"a": {"json": b""}, "b": {"json": b"1"}}


def test_offsets_lead_straight_to_a_sample() -> None:
    content = archive(("a.json", b"a" * 700), ("a.jpg", b"j"), ("b.json", b"b"), ("b.jpg", b"k" * 512))
    found = index(content)
    start, end = found.span(1)
    assert read_sample(memoryview(content)[start:end], indexed=False) == ("b", {"json": b"b", "jpg": b"k" * 512})
    assert len(found) == 2 and found.span(0)[1] == start


def test_directories_are_passed_over() -> None:
    content = archive(special("data", tarfile.DIRTYPE), ("data/a.json", b"1"), special("data/x", tarfile.DIRTYPE))
    assert good(content) == {"data/a": {"json": b"1"}}
    assert index(content).bad == {}


class Canary:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, ("executed",)


@pytest.mark.parametrize("extension", ["pickle", "pkl", "pyd", "pth", "pt", "npy", "npz", "bin", "py", "0.gif", "tar"])
def test_files_that_could_run_code_are_refused_and_named(
    extension: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Canary())
    content = archive(("a.json", b"{}"), (f"b.{extension}", evil), ("b.json", b"{}"), ("c.json", b"{}"))
    assert reasons(content) == [("b", "refused_file")]
    assert sorted(good(content)) == ["a", "c"]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name", ["/etc/passwd.json", "../a.json", "x/../../a.json", "..\\a.json", "C:\\a.json", "\\\\host\\a.json"]
)
def test_names_that_leave_the_archive_are_refused(name: str) -> None:
    content = archive((name, b"{}"), ("ok.json", b"{}"))
    assert [reason for _, reason in reasons(content)] == ["unsafe_name"]
    assert list(good(content)) == ["ok"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_special_files_are_refused(kind: bytes) -> None:
    content = archive(special("a.json", kind, "/etc/passwd"), ("b.json", b"{}"))
    assert reasons(content) == [("a", "not_a_file")]
    assert list(good(content)) == ["b"]


def test_a_link_whose_header_claims_a_size_hides_nothing() -> None:
    link = special("a.json", tarfile.SYMTYPE, "b")
    content = bytearray(archive(link, ("b.json", b"{}")))
    content[124:136] = b"00000001000\0"  # as if 512 bytes of data followed
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    assert list(good(bytes(content))) == ["b"]


def test_sparse_files_are_refused() -> None:
    info = tarfile.TarInfo("a.json")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    assert reasons(archive(info, ("b.json", b"{}"), format=tarfile.PAX_FORMAT)) == [("a", "not_a_file")]


def test_duplicates_are_refused_and_the_first_is_kept() -> None:
    content = archive(("a.json", b"1"), ("b.json", b"2"), ("a.json", b"3"), ("c.json", b"4"), ("c.json", b"5"))
    assert reasons(content) == [("a", "duplicate_key"), ("c", "duplicate_file")]
    assert good(content) == {"a": {"json": b"1"}, "b": {"json": b"2"}}


@pytest.mark.parametrize("kind", ["mp4", "webm", "mkv", "mov", "avi"])
def test_videos_are_read_up_to_a_limit_of_their_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive((f"a.0.{kind}", b"v" * 20), ("a.json", b"{}"), ("b.0.jpg", b"i" * 20))
    monkeypatch.setattr("sail_train.data.tar.MAX_MEMBER_BYTES", 10)
    assert reasons(content) == [("b", "too_large")] and good(content) == {"a": {f"0.{kind}": b"v" * 20, "json": b"{}"}}
    monkeypatch.setattr("sail_train.data.tar.MAX_VIDEO_BYTES", 10)
    assert reasons(content) == [("a", "too_large"), ("b", "too_large")]


def test_names_without_an_extension_are_refused() -> None:
    assert reasons(archive(("README", b"x"), (".hidden", b"x"), ("a.", b"x"))) == [
        ("README", "refused_file"), (".hidden", "refused_file"), ("a.", "refused_file"),
    ]  # fmt: skip


def test_a_file_over_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_MEMBER_BYTES", 1000)
    content = archive(("a.json", b"x" * 1001), ("b.json", b"x" * 1000))
    assert reasons(content) == [("a", "too_large")]


def test_a_shard_cut_off_inside_a_file_is_named_and_its_whole_samples_are_kept() -> None:
    content = archive(("a.json", b"1"), ("b.json", b"2" * 600), ("c.json", b"3" * 600))
    cut = content[: 1024 + 1536 + 512 + 100]
    (key, error), *rest = index(cut).bad.values()
    assert (key, error.reason, rest) == ("c", "truncated_shard", [])
    assert "2 samples before it" in error.detail
    assert sorted(good(cut)) == ["a", "b"]


@pytest.mark.parametrize("length", [1024, 1024 + 300, 0])
def test_a_shard_without_its_end_is_never_taken_for_whole(length: int) -> None:
    cut = archive(("a.json", b"1"), ("b.json", b"2"))[:length]
    assert [reason for _, reason in reasons(cut)] == ["truncated_shard"]
    assert len(good(cut)) == (1 if length else 0)


def test_a_cut_at_every_length_is_found_and_never_raises() -> None:
    content = archive(("a.json", b"1" * 600), ("ä" * 120 + ".json", b"2"), format=tarfile.PAX_FORMAT)
    used = index(content).end
    for length in range(0, used + 1, 64):
        assert "truncated_shard" in {reason for _, reason in reasons(content[:length])}


def test_damaged_headers_end_the_shard_with_a_reason() -> None:
    content = bytearray(archive(("a.json", b"1"), ("b.json", b"2"), ("c.json", b"3")))
    content[1024 + 130] ^= 1
    assert reasons(bytes(content)) == [("", "corrupt_shard")]
    assert list(good(bytes(content))) == ["a"]
    assert reasons(b"this is no tar file" * 100) == [("", "corrupt_shard")]


@pytest.mark.parametrize("size", [b"zzzzzzzzzzz\0", b"-0000001000\0", b"\x80" + b"\x00" * 7 + b"\xff" * 4])
def test_impossible_sizes_do_not_raise(size: bytes) -> None:
    content = bytearray(archive(("a.json", b"1")))
    content[124:136] = size
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    assert {reason for _, reason in reasons(bytes(content))} <= {"corrupt_shard", "truncated_shard", "too_large"}
    assert reasons(bytes(content))


@pytest.mark.parametrize("record", [b"99 path=x\n", b"x", b"3 a=", b"4 =b", b"0 path=a\n"])
def test_damaged_extended_headers_do_not_raise(record: bytes) -> None:
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = b"x", len(record)
    content = extended.tobuf() + record.ljust(512, b"\0") + archive(("a.json", b"1"))
    for _, reason in reasons(content):
        assert reason in {"corrupt_shard", "truncated_shard", "refused_file"}


@pytest.mark.parametrize("digits", [21, 5000])
def test_a_size_of_too_many_digits_is_refused(digits: int) -> None:
    record = b" size=" + b"9" * digits + b"\n"
    record = b"%d" % (len(record) + len(str(len(record)))) + record
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = b"x", len(record)
    padded = record.ljust(-(-len(record) // 512) * 512, b"\0")
    found = index(extended.tobuf() + padded + archive(("a.json", b"1")))
    (key, problem), *rest = found.bad.values()
    assert (key, problem.reason, rest) == ("", "corrupt_shard", []) and f"a size of {digits} digits" in problem.detail


def test_damage_is_told_from_bad_samples_even_where_the_last_is_bad_anyway() -> None:
    content = archive(("a.json", b"1"), ("b.exe", b"2" * 600))
    assert index(content).damage is None
    cut = index(content[: 1024 + 512 + 100]).damage
    assert cut is not None and cut.reason == "truncated_shard"


def test_an_extended_header_over_the_limit_is_refused() -> None:
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = b"x", tar.MAX_NAME_BYTES + 1
    assert reasons(extended.tobuf() + bytes(1 << 17)) == [("", "corrupt_shard")]


def test_data_behind_the_end_mark_is_reported(make: SimpleNamespace) -> None:
    content = archive(("a.json", b"1")) + archive(("b.json", b"2"))
    assert [reason for _, reason in reasons(content)] == ["trailing_data"]
    assert list(good(content)) == ["a"]


def test_random_damage_never_raises_anything_but_bad_samples() -> None:
    content = bytearray(archive(*((f"{i}.json", b"x" * 100 * i) for i in range(6)), format=tarfile.PAX_FORMAT))
    for place in range(0, len(content), 37):
        damaged = content.copy()
        damaged[place] ^= 0xA5
        found = index(bytes(damaged))
        assert all(isinstance(error, BadSample) for _, error in found.bad.values())
        good(bytes(damaged))


def test_the_short_way_through_a_header_finds_what_the_long_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or leaves it to the long one: for whole headers of all forms, and for damaged ones."""
    rng, short, taken = random.Random(0), tar._plain_member, 0
    monkeypatch.setattr(tar, "_plain_member", lambda header, offset: None)

    def long(header: bytes) -> tar.Member | None:
        try:
            return tar._next_member(lambda offset, length: header[offset : offset + length], 0)
        except BadSample:
            return None

    for turn in range(4000):
        member = tarfile.TarInfo(
            rng.choice(["a.json", "folder/b.0.jpg", "n" * 99 + "x", "ä.png", "x" * 140 + "/y.txt"])
        )
        member.size, member.mtime = rng.choice([0, 7, 511, 1 << 20, 8**11 - 1, 8**12]), rng.choice([0, 1.5, 1e9])
        member.type = rng.choice([tarfile.REGTYPE] * 8 + [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.AREGTYPE])
        form = rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        header = bytearray(member.tobuf(form)[:512])
        for _ in range(rng.choice([0, 0, 1, 2]) if turn else 0):
            header[rng.choice([rng.randrange(512), rng.randrange(124, 157)])] = rng.choice([*b"0789 \0-", 0x80, 0xFF])
        found = short(bytes(header), 0)
        assert found is None or found == long(bytes(header)), bytes(header)
        taken += found is not None
    assert taken > 500, "it is taken at all"
