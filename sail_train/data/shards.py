"""The first step of the stream: which shards a source has, which of their samples a stream reads, and reading them.

`expand` turns paths, globs and braces into a list of local files; `share` says which part of them is one stream's;
`SourceReader` yields that part's samples for ever, epoch after epoch in a new order of shards. Its state is (epoch,
place in the epoch's order, byte offset).
"""

from __future__ import annotations

import glob
import math
import os
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import braceexpand

from sail_train.data import tar
from sail_train.data.draw import permutation
from sail_train.data.quarantine import Ledger
from sail_train.data.shard_file import ShardFile
from sail_train.types import BadSample, RawSample

CHANGED = "the data is not what it was when the checkpoint was saved:"
UNITS_PER_STREAM = 16
"""A stream reads at least this many pieces where shards do not divide evenly: shares then differ by 1/16 at most."""


def expand(source: str, patterns: Sequence[str]) -> list[str]:
    """The shard files that `patterns` name, in order.

    Raises:
        ValueError: nothing matches, a file is missing or named twice, or it is no local, uncompressed .tar file.
    """
    paths: list[str] = []
    for pattern in patterns:
        local = _local(source, pattern)
        found = [path for part in braceexpand.braceexpand(local) for path in _matches(source, part)]
        paths.extend(found)
    if not paths:
        raise ValueError(f"source {source!r}: shards={list(patterns)!r} names no shard; give paths or globs of .tar")
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise ValueError(f"source {source!r}: shard {path!r} is named twice by shards={list(patterns)!r}")
        seen.add(path)
    return paths


def _local(source: str, pattern: str) -> str:
    if pattern.startswith("file://"):
        pattern = pattern.removeprefix("file://")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|pipe:", pattern):
        raise ValueError(
            f"source {source!r}: {pattern!r} is not a local path; only paths and file:// are read: "
            f"copy the shards to a local or mounted folder"
        )
    if pattern.endswith((".gz", ".tgz", ".bz2", ".xz", ".zst")):
        raise ValueError(f"source {source!r}: {pattern!r} is compressed, which cannot be sought in; store plain .tar")
    return pattern


def _matches(source: str, path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    if not glob.has_magic(path):
        raise ValueError(f"source {source!r}: shard {path!r} does not exist")
    found = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
    if not found:
        raise ValueError(f"source {source!r}: the pattern {path!r} matches no file")
    return found


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What a stream reads in one go: samples i of a shard with i mod stripes == stripe."""

    shard: int
    stripe: int
    stripes: int


def share(num_shards: int, num_streams: int, stream: int) -> list[Unit]:
    """The part of a source that is `stream`'s: whole shards where they divide evenly or are many, else stripes.

    With n shards, streams read shards[k::S] if S divides n, and shard k mod n striped by sample if n divides S;
    in between the shards are striped just finely enough that no stream's share is more than 1/16 larger than
    another's, so that each sample is seen equally often.
    """
    exact = num_streams // math.gcd(num_shards, num_streams)
    stripes = min(exact, -(-UNITS_PER_STREAM * num_streams // num_shards))
    return [
        Unit(shard=unit % num_shards, stripe=unit // num_shards, stripes=stripes)
        for unit in range(stream, num_shards * stripes, num_streams)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An undecoded sample on its way to a row, and where to read it again."""

    raw: RawSample
    shard: int
    """Number of its shard in the source's list."""
    epoch: int
    place: list[Any] = field(init=False)
    """JSON: enough to read the sample again with one seek. Made once: every position holds it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", [self.raw.source, self.shard, self.raw.offset, self.epoch])


class SourceReader:
    """One stream's samples of one source, for ever; bad ones go to the ledger."""

    def __init__(
        self, name: str, shards: Sequence[str], *, seed: int, stream: int, num_streams: int, ledger: Ledger
    ) -> None:
        self.name = name
        self._shards = shards
        self._ledger = ledger
        self._stream = stream
        self._seed = seed
        self._units = share(len(shards), num_streams, stream)
        self._epoch = 0
        self._unit = 0
        self._offset = 0
        self._order = self._shuffled()
        self._open: tuple[ShardFile, tar.Index] | None = None
        self._empty = True

    def __next__(self) -> Candidate:
        while True:
            unit = self._units[self._order[self._unit]]
            place = self._place(unit)
            if place is None:
                self._next_unit()
                continue
            file, index = self._opened(unit)
            self._empty = False
            self._offset = index.span(place)[1]
            try:
                return Candidate(raw=file.sample(index, place), shard=unit.shard, epoch=self._epoch)
            except BadSample as error:
                if place not in index.bad:
                    raise ValueError(f"shard {file.path!r} changed while it was read: {error}") from error
                self._ledger.bad(self.name, file.path, index.bad[place][0], error)

    def state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "unit": self._unit, "offset": self._offset}

    def load_state(self, state: Mapping[str, int]) -> None:
        self._close()
        self._epoch, self._unit, self._offset = state["epoch"], state["unit"], state["offset"]
        self._order = self._shuffled()
        # a resumed epoch may have found its samples before
        self._empty = self._unit == 0 and self._offset == 0

    def reread(self, place: Sequence[Any]) -> Candidate:
        """The sample that `Candidate.place` describes, by seeking to it."""
        _, shard, offset, epoch = place
        file = ShardFile(self._shards[shard], source=self.name)
        index = file.index()
        number = bisect_left(index.starts, offset)
        if number == len(index) or index.starts[number] != offset or number in index.bad:
            raise ValueError(f"{CHANGED} source {self.name!r}, shard {file.path!r}: no sample at byte {offset}")
        return Candidate(raw=file.sample(index, number), shard=shard, epoch=epoch)

    def _place(self, unit: Unit) -> int | None:
        """Number of the next sample in the unit's shard; None when the unit is used up."""
        _, index = self._opened(unit)
        number = bisect_left(index.starts, self._offset)
        known = self._offset in (0, index.end) or (number < len(index) and index.starts[number] == self._offset)
        if not known:
            path = self._shards[unit.shard]
            raise ValueError(f"{CHANGED} source {self.name!r}, shard {path!r}: no sample at byte {self._offset}")
        number += (unit.stripe - number) % unit.stripes
        return number if number < len(index) else None

    def _opened(self, unit: Unit) -> tuple[ShardFile, tar.Index]:
        if self._open is None:
            file = ShardFile(self._shards[unit.shard], source=self.name)
            self._open = file, file.index()
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self._open[0].close()
        self._open = None

    def _next_unit(self) -> None:
        self._close()
        self._unit, self._offset = self._unit + 1, 0
        if self._unit < len(self._units):
            return
        if self._empty:
            raise ValueError(
                f"source {self.name!r}: the share of stream {self._stream} in its {len(self._shards)} shards holds no "
                f"sample; use fewer streams (num_streams) or more samples"
            )
        self._epoch, self._unit, self._empty = self._epoch + 1, 0, True
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        return permutation(len(self._units), self._seed, "shards", self.name, self._stream, self._epoch).tolist()
