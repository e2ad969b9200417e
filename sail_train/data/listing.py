"""Which shards a source has, without a look at each: patterns -> a list whose names are made when they are asked for.

Paths and brace patterns are taken as they are, so that a list of 100,000 shards costs a start nothing and a few
hundred bytes; a missing shard is found when it is opened. Only globs list a folder, once. A handful of local shards,
spread over the list, are looked for nevertheless: a mistyped folder should not wait for the first step.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, overload

import braceexpand

from sail_train.data import remote
from sail_train.data.shard_file import ShardFile

log = logging.getLogger(__name__)

LOOKED_AT = 16
"""Local shards of a source that are looked for at the start; of no more than these, all are."""
NAMES_IN_HASH = 1024
"""Names that the fingerprint of a source holds; of a longer list, this many evenly spread over it."""
CHECKED_FOR_TWINS = 1 << 14
"""Longest list in which a shard that is named twice is looked for."""
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")

ListFolder = Callable[[str, str], list[str]]
"""(source, glob) -> names in order."""

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_PATTERN = re.compile(r"[{}\\*?\[]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?=//|:)|pipe:")


class ShardList(Sequence[str]):
    """Names of shards, made when they are asked for."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(place)
        part = bisect_right(self._ends, number)  # parts without a name end where they begin, and are passed over
        return self._parts[part][number - (self._ends[part - 1] if part else 0)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def spread(self, count: int) -> list[str]:
        """Up to `count` names, evenly over the list, the first and the last among them."""
        if len(self) <= count:
            return list(self)
        return [self[number * (len(self) - 1) // (count - 1)] for number in range(count)]


class _Numbers(Sequence[str]):
    """{000..099}, as braceexpand has it."""

    def __init__(self, first: str, last: str, step: str | None) -> None:
        padded = any(text.startswith(("0", "-0")) and text not in ("0", "-0") for text in (first, last))
        self._width = max(len(first), len(last)) if padded else 0
        stride = int(step or 1) or 1
        start, end = int(first), int(last)
        self._range = range(start, end + 1, stride) if start < end else range(start, end - 1, -stride)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, place: Any) -> Any:
        return f"{self._range[place]:0{self._width}d}"


class _Product(Sequence[str]):
    """All combinations of the pieces of a brace pattern, the last piece changing fastest."""

    def __init__(self, pieces: Sequence[Sequence[str]]) -> None:
        self._pieces = pieces
        self._length = 1
        for piece in pieces:
            self._length *= len(piece)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < self._length:
            raise IndexError(place)
        chosen: list[str] = []
        for piece in reversed(self._pieces):
            place, number = divmod(place, len(piece))
            chosen.append(piece[number])
        return "".join(reversed(chosen))


def expand(
    source: str, patterns: Sequence[str], *, list_folder: ListFolder | None = None, skip_missing: bool = False
) -> ShardList:
    """The shards that `patterns` name, in order.

    Args:
        skip_missing: be content if some of the shards that are looked for are there (`on_bad_shard: skip`).

    Raises:
        ValueError: nothing matches; one of those looked at is missing, or one is named twice; a scheme that is not
            read, a compressed file, or a URL with credentials.
    """
    parts: list[Sequence[str]] = []
    for pattern in patterns:
        lines = _listed(source, pattern.removeprefix("@")) if pattern.startswith("@") else None
        plain: list[str] = []
        for line in [pattern] if lines is None else lines:
            checked = _checked(source, line, listed=lines is not None)
            if _PATTERN.search(checked.partition("?")[0] if remote.is_remote(checked) else checked):
                parts.extend([plain, *_part(source, checked, list_folder or matches)])
                plain = []
            else:
                plain.append(checked)
        parts.append(plain)
    shards = ShardList(parts)
    if not len(shards):
        raise ValueError(f"source {source!r}: shards={list(patterns)!r} names no shard; give paths or globs of .tar")
    _check(source, shards, skip_missing)
    return shards


def matches(source: str, pattern: str) -> list[str]:
    """Names that a glob stands for: one listing of its folders."""
    if remote.is_remote(pattern):
        found = ShardFile(pattern, source=source).retry(lambda: remote.matches(source, pattern), "the listing")
    else:
        found = _local_matches(pattern)
    if not found:
        raise ValueError(f"source {source!r}: the pattern {pattern!r} matches no file")
    return sorted(found)


def are_plain(names: Sequence[str]) -> bool:
    """Whether each of these names, as a pattern, names itself."""
    return not any(name.startswith("@") or _PATTERN.search(name) for name in names)


def names_hash(shards: Sequence[str]) -> str:
    """Of the files' names, whatever their folder; no file is looked at."""
    listed = shards.spread(NAMES_IN_HASH) if isinstance(shards, ShardList) else shards
    described = "\n".join([str(len(shards)), *(os.path.basename(remote.shown(name)) for name in listed)])
    return hashlib.blake2b(described.encode(), digest_size=8).hexdigest()


def describe(shards: ShardList, *, skip_missing: bool = False) -> dict[str, Any]:
    """For a run's lineage: the number of shards, their bytes, and a hash of names and sizes.

    Of a list longer than `NAMES_IN_HASH` only so many are looked at, and of remote ones the names alone; the bytes
    are null then. With `skip_missing`, hash and bytes are null where a shard is missing.
    """
    looked = shards.spread(NAMES_IN_HASH)
    try:
        sizes = [None if remote.is_remote(path) else os.path.getsize(path) for path in looked]
    except OSError as error:
        if skip_missing:
            return {"shards": len(shards), "bytes": None, "hash": None}
        raise ValueError(f"shard {error.filename!r} cannot be looked at: {error.strerror}") from None
    lines = [
        os.path.basename(remote.shown(path)) + ("" if size is None else f" {size}")
        for path, size in zip(looked, sizes, strict=True)
    ]
    whole = len(looked) == len(shards) and None not in sizes
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {"shards": len(shards), "bytes": sum(size or 0 for size in sizes) if whole else None, "hash": digest}


def _listed(source: str, path: str) -> list[str]:
    """The lines of a list of shards. It may hold signed URLs, so what is wrong is told without them."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"source {source!r}: the list of shards @{path} cannot be read: {error}") from None
    return [line for line in lines if line and not line.startswith("#")]


def _checked(source: str, pattern: str, *, listed: bool) -> str:
    pattern = pattern.removeprefix("file://")
    if remote.is_remote(pattern):
        remote.check(source, pattern, listed=listed)
    elif _SCHEME.match(pattern):
        raise ValueError(
            f"source {source!r}: {remote.shown(pattern)!r} is not a local path, and of others only "
            f"{', '.join(f'{scheme}://' for scheme in ('file', *remote.SCHEMES))} are read: copy the shards to a "
            "folder or a store of one of these"
        )
    if remote.shown(pattern).endswith(COMPRESSED):
        raise ValueError(
            f"source {source!r}: {remote.shown(pattern)!r} is compressed, which cannot be sought in; store plain .tar"
        )
    return pattern


def _part(source: str, pattern: str, list_folder: ListFolder) -> Iterator[Sequence[str]]:
    if not glob.has_magic(remote.shown(pattern)):
        yield _braces(source, pattern)
        return
    for part in braceexpand.braceexpand(pattern):
        literal = not remote.is_remote(part) and os.path.isfile(part)
        yield [part] if literal else list_folder(source, part) if glob.has_magic(part) else [part]


def _braces(source: str, pattern: str) -> Sequence[str]:
    """The pattern's alternatives, its number ranges unexpanded."""
    pieces: list[Sequence[str]] = []
    start, depth, place = 0, 0, 0
    while place < len(pattern):
        character = pattern[place]
        if character == "{":
            if depth == 0:
                pieces.append(_alternatives(pattern[start:place]))
                start = place
            depth += 1
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                pieces.append(_alternatives(pattern[start : place + 1]))
                start = place + 1
        place += 2 if character == "\\" else 1
    if depth:
        raise ValueError(f"source {source!r}: the braces of {remote.shown(pattern)!r} do not match")
    pieces.append(_alternatives(pattern[start:]))
    return _Product([piece for piece in pieces if piece != [""]] or [[""]])


def _alternatives(text: str) -> Sequence[str]:
    match = _RANGE.fullmatch(text[1:-1]) if text.startswith("{") else None
    return _Numbers(*match.groups()) if match else list(braceexpand.braceexpand(text)) if text else [""]


def _check(source: str, shards: ShardList, skip_missing: bool) -> None:
    if len(shards) <= CHECKED_FOR_TWINS:
        seen: set[str] = set()
        for path in shards:
            if path in seen:
                raise ValueError(f"source {source!r}: shard {remote.shown(path)!r} is named twice")
            seen.add(path)
    looked = shards.spread(LOOKED_AT)
    missing = [path for path in looked if not remote.is_remote(path) and not os.path.isfile(path)]
    for path in missing:
        if os.path.isdir(path):
            shards_of = os.path.join(path, "*.tar")
            raise ValueError(f"source {source!r}: {path!r} is a folder; name its shards: {shards_of!r}")
    if missing and not (skip_missing and len(missing) < len(looked)):
        raise ValueError(
            f"source {source!r}: shard {missing[0]!r} does not exist; put it there, or let the source go on without "
            "it with on_bad_shard=skip"
        )
    for path in missing:
        log.warning("source %s: shard %s does not exist, and will be left out (on_bad_shard=skip)", source, path)


def _local_matches(pattern: str) -> list[str]:
    found = glob.glob(pattern, recursive=True)
    # what is named .tar is taken for a file: a look at each of 100,000 costs minutes on a network disk
    return found if pattern.endswith(".tar") else [match for match in found if os.path.isfile(match)]
