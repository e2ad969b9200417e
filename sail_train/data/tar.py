"""Reading tar shards: headers, and the index of a shard's samples.

A shard is opened once and its headers are walked through (`index`), which finds the samples, duplicates, refused
members and a cut-off end before any of it is used; then each sample is one read at its offset. That makes a saved
position a byte offset, and a resumed stream reads as much as one that was never stopped.
Nothing is ever extracted to disk or unpickled: only regular members with allow-listed extensions are read, into
memory. Python's tarfile is not used: it ends quietly on a truncated archive and its objects cost 30 us a member.
Compressed shards are left out: they cannot be sought in, and images do not shrink.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from string import ascii_letters
from typing import TYPE_CHECKING, Any

from sail_train.types import BadSample

if TYPE_CHECKING:
    import numpy as np

BLOCK = 512
_END = bytes(BLOCK)
MAX_MEMBER_BYTES = 64 << 20
"""A larger file in a sample is refused: it would be held in memory many times over."""
MAX_VIDEO_BYTES = 256 << 20
"""The same for a video: shards are read sample by sample, so that a longer one belongs cut, or transcoded, first."""
MAX_NAME_BYTES = 1 << 16
"""Limit of an extended header, which holds a long name."""
MAX_SIZE_DIGITS = 20
"""Of a size in an extended header; Python itself refuses to read a number of thousands of digits."""
DAMAGE = frozenset({"truncated_shard", "corrupt_shard"})
"""Reasons of a last sample that stands for all that is missing after it."""

TEXTS = frozenset({"json", "txt"})
IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
VIDEOS = frozenset({"mp4", "webm", "mkv", "mov", "avi"})
READ = TEXTS | IMAGES | VIDEOS
"""Extensions of the files that are ever read."""

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_OCTAL = re.compile(rb"[0-7]+")
_REGULAR = frozenset({b"0", b"\0", b"7"})
DIRECTORY = b"5"
_FILE = ord("0")
_WITHOUT_DATA = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
"""Links, devices and directories: whatever size their header gives, no data follows."""
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"

Read = Callable[[int, int], bytes]
"""read(offset, length): that many bytes, fewer only where the shard ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file of an archive, undecoded."""

    name: str
    start: int
    """Offset of its first header, extended headers included."""
    data: int
    """Offset of its bytes."""
    size: int
    kind: bytes
    """The header's type flag."""

    @property
    def end(self) -> int:
        """Offset after its padded data."""
        return self.data + -(-self.size // BLOCK) * BLOCK


@dataclass(frozen=True, kw_only=True)
class Index:
    """Where the samples of a shard are."""

    starts: array[int]
    """Offset of each sample's first header, in order, bad samples included."""
    end: int
    """Offset after the last sample."""
    bad: dict[int, tuple[str, BadSample]]
    """By place in `starts`: key, and why the sample cannot be used."""
    checksums: array[int] | None = None
    """crc32 of each sample's bytes, of an index that was read from a file: its samples are checked when read."""
    keys: Any = None
    """Of all samples, likewise (a pyarrow array)."""
    shows: np.ndarray | None = None
    """(samples,) float64: how often each is to be shown in an epoch, 0 for one that is left out; None: each once."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def damage(self) -> BadSample | None:
        """Why the shard could not be walked through to its end; None for a whole one."""
        _, problem = self.bad.get(len(self) - 1, ("", None))
        return problem if problem is not None and problem.reason in DAMAGE else None

    def key(self, place: int) -> str:
        """Of a sample that turned out to be bad; empty where only its own bytes would tell."""
        if place in self.bad:
            return self.bad[place][0]
        return "" if self.keys is None else str(self.keys[place])

    def span(self, place: int) -> tuple[int, int]:
        """(start, end) of the sample's headers and data in the shard."""
        following = place + 1
        return self.starts[place], self.starts[following] if following < len(self.starts) else self.end


def split_name(name: str) -> tuple[str, str]:
    """(key, lower-case extension) by webdataset's rule: the extension begins at the first dot of the file's name."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2].lower()) if match else (name, "")


def check_member(member: Member, extension: str) -> BadSample | None:
    """Why a member must not be read; None if it may be."""
    name = member.name
    if member.kind not in _REGULAR:
        return BadSample("not_a_file", f"{name!r} is a link or a special file (tar type {member.kind!r})")
    if _is_unsafe(name):
        return BadSample("unsafe_name", f"{name!r} points outside its archive")
    kind = extension.rpartition(".")[2]
    limit = MAX_VIDEO_BYTES if kind in VIDEOS else MAX_MEMBER_BYTES
    if member.size > limit:
        return BadSample("too_large", f"{name!r} has {member.size} bytes, the limit is {limit}")
    if kind not in READ or not extension:
        return BadSample("refused_file", f"{name!r}: only {', '.join(sorted(READ))} files are ever read")
    return None


def _is_unsafe(name: str) -> bool:
    climbs = ".." in name and ".." in re.split(r"[/\\]", name)
    return climbs or name.startswith(("/", "\\")) or "\0" in name or (name[1:2] == ":" and name[0] in ascii_letters)


def members(read: Read, offset: int, end: int) -> Iterator[Member]:
    """The members from `offset` on, up to `end` or the archive's end mark.

    Raises:
        BadSample: "truncated_shard" or "corrupt_shard"; what follows cannot be found.
    """
    while offset < end:
        member = _next_member(read, offset)
        if member is None:
            return
        yield member
        offset = member.end


def index(read: Read, size: int) -> Index:
    """Walks through all headers of a shard of `size` bytes, reading no file's content."""
    building = _IndexBuilder()
    offset = 0
    try:
        for member in members(read, 0, size):
            if member.end > size:
                building.add(member)
                detail = f"cut off inside {member.name!r} at byte {size}; {building.count} samples before it"
                building.end(BadSample("truncated_shard", detail))
                return building.index(size)
            building.add(member)
            offset = member.end
        problem = _check_end(read, offset, size)
    except BadSample as error:
        problem = error
    if problem is None:
        return building.index(offset)
    # an entry of its own, so that it is met, counted and named where it stands
    building.open("", offset)
    building.refuse(problem)
    return building.index(max(size, offset + 1))


class _IndexBuilder:
    """Groups consecutive members by key."""

    def __init__(self) -> None:
        self.starts = array("q")
        self.bad: dict[int, tuple[str, BadSample]] = {}
        self._key: str | None = None
        self._keys: set[str] = set()
        self._extensions: set[str] = set()

    @property
    def count(self) -> int:
        """Samples before the one that is open."""
        return len(self.starts) - 1

    def open(self, key: str, start: int) -> None:
        self.starts.append(start)
        self._key, self._extensions = key, set()
        if key and key in self._keys:
            self.refuse(BadSample("duplicate_key", f"{key!r} was in this shard before"))
        self._keys.add(key)

    def add(self, member: Member) -> None:
        if member.kind == DIRECTORY:
            return
        key, extension = split_name(member.name)
        if key != self._key:
            self.open(key, member.start)
        problem = check_member(member, extension)
        if problem is None and extension in self._extensions:
            problem = BadSample("duplicate_file", f"{member.name!r} is in its sample twice")
        if problem is not None:
            self.refuse(problem)
        self._extensions.add(extension)

    def refuse(self, problem: BadSample) -> None:
        """Marks the open sample; what was wrong first stays."""
        self.bad.setdefault(len(self.starts) - 1, (self._key or "", problem))

    def end(self, problem: BadSample) -> None:
        """Marks the open sample as the one in which the shard ends, whatever else is wrong with it."""
        self.bad[len(self.starts) - 1] = self._key or "", problem

    def index(self, end: int) -> Index:
        return Index(starts=self.starts, end=end, bad=self.bad)


def _next_member(read: Read, offset: int) -> Member | None:
    """The member whose (extended) header is at `offset`; None at the end mark."""
    start, name, size, sparse = offset, None, None, False
    while True:
        header = _read_exactly(read, offset, BLOCK)
        if offset == start and (plain := _plain_member(header, offset)) is not None:
            return plain
        if header == _END:
            return None
        _check_sum(header, offset)
        kind, length = header[156:157], _number(header[124:136], offset)
        offset += BLOCK
        if kind not in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            break
        if length > MAX_NAME_BYTES:
            raise BadSample("corrupt_shard", f"extended header of {length} bytes at byte {offset}")
        content = _read_exactly(read, offset, length)
        offset += -(-length // BLOCK) * BLOCK
        if kind == _LONG_NAME:
            name = _text(content)
        elif kind == _PAX:
            records = _pax_records(content, offset)
            name = records.get("path", name)
            size = _pax_size(records.get("size", ""), offset, size)
            sparse = sparse or any(key.startswith("GNU.sparse") for key in records)
    size = 0 if kind in _WITHOUT_DATA else length if size is None else size
    name = _header_name(header) if name is None else name
    return Member(name=name, start=start, data=offset, size=size, kind=b"S" if sparse else kind)


def _plain_member(header: bytes, offset: int) -> Member | None:
    """The member of a header as nearly all are (a regular file, sizes in octal, no prefix), in a third of the time;
    None for all others and for whatever is wrong."""
    size = header[124:135]
    if header[156] != _FILE or header[345] or header[135] or not size.isdigit() or not sum_fits(header):
        return None
    try:
        return Member(name=_text(header[:100]), start=offset, data=offset + BLOCK, size=int(size, 8), kind=b"0")
    except ValueError:  # an 8 or a 9
        return None


def sum_fits(header: bytes) -> bool:
    """Whether a header has the sum that is written in it as nearly all are: six octal digits and a zero."""
    total = header[148:154]
    if header[154] or not total.isdigit():
        return False
    try:
        # one more than the sum of all bytes, modulo 65521, is the low half of their adler32
        expected = 1 + int(total, 8) - 8 * 32 + sum(header[148:156])
    except ValueError:  # an 8 or a 9
        return False
    return zlib.adler32(header) & 0xFFFF == expected % 65521


def _read_exactly(read: Read, offset: int, length: int) -> bytes:
    content = read(offset, length)
    if len(content) < length:
        raise BadSample("truncated_shard", f"ends inside a header at byte {offset + len(content)}")
    return content


def _check_sum(header: bytes, offset: int) -> None:
    """A wrong sum means that this is no header: the archive is damaged, or is none."""
    found = sum(header) - sum(header[148:156]) + 8 * 32
    if found != _number(header[148:156], offset):
        raise BadSample("corrupt_shard", f"no tar header at byte {offset}")


def _number(field: bytes, offset: int) -> int:
    """A size in octal, or in base 256 where it did not fit."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip() or b"0"
    if not _OCTAL.fullmatch(digits):  # int() takes a minus sign, with which a shard would never end
        raise BadSample("corrupt_shard", f"no tar header at byte {offset}")
    return int(digits, 8)


def _text(content: bytes) -> str:
    return content.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _header_name(header: bytes) -> str:
    name = _text(header[:100])
    # only POSIX archives keep a prefix there; GNU ones keep times
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax_records(content: bytes, offset: int) -> dict[str, str]:
    """Lines "length key=value\\n", where the length counts the whole line."""
    records, place = {}, 0
    while place < len(content) and content[place] != 0:
        match = re.match(rb"(\d{1,7}) ([^=]+)=", content[place:])
        if match is None or int(match[1]) <= match.end():
            raise BadSample("corrupt_shard", f"unreadable extended header before byte {offset}")
        end = place + int(match[1])
        records[match[2].decode("utf-8", "backslashreplace")] = _text(content[place + match.end() : end - 1])
        place = end
    return records


def _pax_size(text: str, offset: int, default: int | None) -> int | None:
    if not text.isdecimal():
        return default
    if len(text) > MAX_SIZE_DIGITS:
        raise BadSample("corrupt_shard", f"a size of {len(text)} digits in the extended header before byte {offset}")
    return int(text)


def _check_end(read: Read, offset: int, size: int) -> BadSample | None:
    """The end mark must be there, and after it nothing: else samples are missing, or hidden from every reader."""
    if offset >= size:
        return BadSample("truncated_shard", f"no end-of-archive mark at byte {size}: samples may be missing")
    while offset < size:
        chunk = read(offset, 1 << 20)
        if chunk.strip(b"\0"):
            return BadSample("trailing_data", f"data after the end-of-archive mark at byte {offset}")
        if not chunk:
            break
        offset += len(chunk)
    return None
