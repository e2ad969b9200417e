"""The first step of the stream: which of a source's samples a stream reads, and reading them.

`share` says which part of the shards is one stream's; `SourceReader` yields that part's samples, epoch after epoch in
a new order of shards, for ever or as often as the source allows. Where the index of a shard has conditions or weights
to honour, a part is gone through several times: pass p shows the samples that are to be shown more than p times.
State: (epoch, place in the epoch's order, pass, byte offset), and what the open shard looked like.
"""

from __future__ import annotations

import logging
import math
import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sail_train.data import tar
from sail_train.data.config import SourceConfig
from sail_train.data.draw import permutation, uniform
from sail_train.data.index import without_shard
from sail_train.data.listing import ShardList, expand
from sail_train.data.quarantine import Ledger
from sail_train.data.shard_file import ShardFile, UnreadableShard
from sail_train.types import BadSample, RawSample

__all__ = ["CHANGED", "Candidate", "Share", "ShardFile", "ShardList", "SourceReader", "Unit", "expand", "share"]

log = logging.getLogger(__name__)

CHANGED = "the data is not what it was when the checkpoint was saved:"
UNITS_PER_STREAM = 16
"""A stream reads at least this many pieces where shards do not divide evenly: shares then differ by 1/16 at most."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What a stream reads in one go: samples i of a shard with i mod stripes == stripe."""

    shard: int
    stripe: int
    stripes: int


@dataclass(frozen=True, kw_only=True)
class Share(Sequence[Unit]):
    """A stream's units, made when they are asked for."""

    num_shards: int
    stripes: int
    numbers: range
    """Of the units, counted over all streams: stripe by stripe, in each all shards."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        stripe, shard = divmod(self.numbers[place], self.num_shards)
        return Unit(shard=shard, stripe=stripe, stripes=self.stripes)


def share(num_shards: int, num_streams: int, stream: int) -> Share:
    """The part of a source that is `stream`'s: whole shards where they divide evenly or are many, else stripes.

    With n shards, streams read shards[k::S] if S divides n, and shard k mod n striped by sample if n divides S;
    in between the shards are striped just finely enough that no stream's share is more than 1/16 larger than
    another's, so that each sample is seen equally often.
    """
    exact = num_streams // math.gcd(num_shards, num_streams)
    stripes = min(exact, -(-UNITS_PER_STREAM * num_streams // num_shards))
    return Share(num_shards=num_shards, stripes=stripes, numbers=range(stream, num_shards * stripes, num_streams))


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An undecoded sample on its way to a row, and where to read it again."""

    raw: RawSample
    shard: int
    """Number of its shard in the source's list."""
    epoch: int
    size: int = 0
    """Bytes of the sample in its shard, headers included; 0 if that is not known."""
    place: list[Any] = field(init=False)
    """JSON: enough to read the sample again with one seek. Made once: every position holds it."""

    def __post_init__(self) -> None:
        place = [self.raw.source, self.shard, self.raw.offset, self.epoch, self.size]
        object.__setattr__(self, "place", place)


@dataclass(kw_only=True)
class _Open:
    """The shard that is being read, and what of it this unit shows."""

    file: ShardFile
    index: tar.Index
    counts: np.ndarray | None
    """(samples,) int64: how often each is shown this epoch, 0 outside the unit; None: those of the unit once each."""


class _Spoilt(Exception):
    """A sample that was good when a position was saved, and is not now."""

    def __init__(self, key: str, problem: BadSample) -> None:
        super().__init__(str(problem))
        self.key, self.problem = key, problem


class SourceReader:
    """One stream's samples of one source; bad ones go to the ledger. Ends where the source has a number of epochs."""

    def __init__(
        self,
        name: str,
        shards: Sequence[str],
        *,
        seed: int,
        stream: int,
        num_streams: int,
        ledger: Ledger,
        source: SourceConfig | None = None,
        index_dir: str | None = None,
    ) -> None:
        self.name = name
        self._shards = shards
        self._ledger = ledger
        self._stream = stream
        self._seed = seed
        self._source = source or SourceConfig()
        self._index_dir = index_dir
        self._units = share(len(shards), num_streams, stream)
        self._epoch = self._unit = self._pass = self._offset = 0
        self._look: dict[str, int] = {}
        """What the open shard looked like, part of the state: its bytes, and a checksum of `counts`."""
        self._order = self._shuffled()
        self._open: _Open | None = None
        self._empty = True
        self._lost = ""
        """The last shard that was left out in this epoch, and why."""
        self._unread: dict[int, Exception] = {}
        """By number, shards that no sample could be read again of."""
        self._again: dict[int, tuple[ShardFile, tar.Index]] = {}
        """By number, shards of samples that are to be read again."""

    @property
    def exhausted(self) -> bool:
        return self._source.epochs is not None and self._epoch >= self._source.epochs

    def __next__(self) -> Candidate:
        while not self.exhausted:
            unit: Unit = self._units[int(self._order[self._unit])]
            try:
                candidate = self._next_of(unit)
            except (OSError, UnreadableShard) as error:
                if self._source.on_bad_shard == "stop":
                    raise
                self._lose(unit, error)
                candidate = None
            if candidate is not None:
                return candidate
            self._next_unit()
        raise StopIteration

    def state(self) -> dict[str, int]:
        state = {"epoch": self._epoch, "unit": self._unit, "offset": self._offset}
        return {**state, **({"pass": self._pass} if self._pass else {}), **(self._look if self._begun else {})}

    def load_state(self, state: Mapping[str, int]) -> None:
        self._close()
        self._epoch, self._unit, self._offset = state["epoch"], state["unit"], state["offset"]
        self._pass = state.get("pass", 0)
        self._look = {name: state[name] for name in ("bytes", "shown") if name in state}
        self._order = self._shuffled()
        # a resumed epoch may have found its samples before
        self._empty = self._unit == 0 and not self._begun
        self._lost, self._unread, self._again = "", {}, {}

    def expect(self, places: Sequence[Sequence[Any]]) -> None:
        """Opens each shard of samples that are to be read again once, and fetches them if it is remote."""
        offsets: dict[int, list[int]] = {}
        for _, shard, offset, _, _ in places:
            offsets.setdefault(shard, []).append(offset)
        for shard, wanted in sorted(offsets.items()):
            try:
                file, index = self._again[shard] = self._opened_again(shard)
                numbers = [bisect_left(index.starts, offset) for offset in wanted]
                # what is not there is found out, and told, when it is read
                known = [number for number in numbers if number < len(index) and number not in index.bad]
                file.expect([index.span(number) for number in known if index.starts[number] in wanted])
            except (OSError, UnreadableShard) as error:
                self._unread[shard] = error

    def reread(self, place: Sequence[Any], *, counted: bool = False) -> Candidate | None:
        """The sample that `Candidate.place` describes, by seeking to it; None, and a record, for one that is lost.

        Args:
            counted: whether the ledger has it as read.

        Raises:
            ValueError: there is another sample, or none; or this one is lost and `on_bad_shard` is "stop".
        """
        _, shard, offset, _, _ = place
        try:
            if shard in self._unread:
                raise self._unread[shard]
            return self._read_again(place)
        except (OSError, UnreadableShard) as error:
            self._unread[shard] = error
            self.lose_again(place, "", BadSample("shard_unreadable", f"byte {offset}: {error}"), counted=counted)
        except _Spoilt as error:
            self.lose_again(place, error.key, error.problem, counted=counted)
        return None

    def lose_again(self, place: Sequence[Any], key: str, error: BadSample, *, counted: bool) -> None:
        """Writes down a sample that waited when the position was saved and cannot be used now; ValueError where
        that is to stop the run."""
        name = ShardFile(self._shards[place[1]], source=self.name).name
        if self._source.on_bad_shard == "stop":
            raise ValueError(
                f"{CHANGED} source {self.name!r}, shard {name!r}: the sample {key!r} at byte {place[2]} waited then "
                f"and cannot be read now ({error}); restore the shard, or go on without its samples with "
                f"data.sources.{self.name}.on_bad_shard=skip"
            ) from error
        log.warning("source %s: a waiting sample of %s, byte %d, is left out (%s)", self.name, name, place[2], error)
        (self._ledger.spoilt if counted else self._ledger.bad)(self.name, name, key, error)

    def _read_again(self, place: Sequence[Any]) -> Candidate:
        _, shard, offset, epoch, size = place
        file, index = self._again.get(shard) or self._opened_again(shard)
        number = bisect_left(index.starts, offset)
        found = number < len(index) and index.starts[number] == offset
        if found and number in index.bad:
            raise _Spoilt(*index.bad[number])
        if not found or (size and index.span(number)[1] - offset != size):
            if index.damage is not None:
                raise _Spoilt("", index.damage)
            raise ValueError(f"{CHANGED} source {self.name!r}, shard {file.name!r}: no sample at byte {offset}")
        try:
            return Candidate(raw=file.sample(index, number, ahead=False), shard=shard, epoch=epoch, size=size)
        except BadSample as error:
            raise _Spoilt(index.key(number), error) from error

    def _opened_again(self, shard: int) -> tuple[ShardFile, tar.Index]:
        file = ShardFile(self._shards[shard], source=self.name)
        return file, file.index(self._index_dir, self._source.filter, ahead=False)

    @property
    def _begun(self) -> bool:
        """Whether anything of the unit was read."""
        return self._offset > 0 or self._pass > 0

    def _next_of(self, unit: Unit) -> Candidate | None:
        """The next sample of the unit; None when it is used up."""
        opened = self._open = self._open or self._opened(unit)
        file, index = opened.file, opened.index
        while (place := self._place(unit, opened)) is not None:
            self._empty = False
            start, end = index.span(place)
            try:
                raw = file.sample(index, place)
            except BadSample as error:
                if place not in index.bad and index.checksums is None:
                    raise ValueError(f"shard {file.name!r} changed while it was read: {error}") from error
                self._offset = end
                self._ledger.bad(self.name, file.name, index.key(place), error)
                continue
            self._offset = end
            return Candidate(raw=raw, shard=unit.shard, epoch=self._epoch, size=end - start)
        return None

    def _place(self, unit: Unit, opened: _Open) -> int | None:
        """Number of the next sample in the unit's shard; None when the unit is used up."""
        while True:
            number = self._number(unit, opened)
            number += (unit.stripe - number) % unit.stripes
            while opened.counts is not None and number < len(opened.counts) and opened.counts[number] <= self._pass:
                number += unit.stripes
            if number < len(opened.index):
                return number
            if opened.counts is None or opened.counts.max(initial=0) <= self._pass + 1:
                return None
            self._pass, self._offset = self._pass + 1, 0

    def _number(self, unit: Unit, opened: _Open) -> int:
        """Number of the sample at the offset."""
        index, offset = opened.index, self._offset
        number = bisect_left(index.starts, offset)
        known = offset in (0, index.end) or (number < len(index) and index.starts[number] == offset)
        if not known:
            raise ValueError(f"{CHANGED} source {self.name!r}, shard {opened.file.name!r}: no sample at byte {offset}")
        return number

    def _opened(self, unit: Unit) -> _Open:
        self._again = {}
        file = ShardFile(self._shards[unit.shard], source=self.name)
        index = file.index(self._index_dir, self._source.filter)
        if index.damage is not None:
            self._check_damage(file, index)
        return self._looked_at(unit, file, index, file.bytes)

    def _check_damage(self, file: ShardFile, index: tar.Index) -> None:
        """UnreadableShard for a shard without its end, unless what comes before that is wanted, and is what it was."""
        known = self._offset in (0, index.end, *index.starts)
        changed = self._begun and (file.bytes != self._look.get("bytes") or not known)
        if changed or self._source.on_bad_shard == "stop":
            raise UnreadableShard(
                f"source {self.name!r}: shard {file.name!r} is damaged ({index.damage}); copy it again, or let the "
                f"source go on without what is missing with data.sources.{self.name}.on_bad_shard=skip"
            )

    def _looked_at(self, unit: Unit, file: ShardFile, index: tar.Index, size: int) -> _Open:
        """Compares a shard with what it was, if it was begun; else counts what of it is left out or comes again."""
        counts = self._counts(unit, index)
        look = {"bytes": size, **({} if counts is None else {"shown": zlib.crc32(counts.tobytes())})}
        if self._begun and look != self._look:
            raise ValueError(
                f"{CHANGED} source {self.name!r}, shard {file.name!r}: its size, weights or filtered samples were "
                f"{self._look} and are {look}"
            )
        self._look = look
        if not self._begun and counts is not None:
            of_unit = counts[unit.stripe :: unit.stripes]
            self._ledger.left_out(self.name, int((of_unit == 0).sum()), int(np.maximum(of_unit - 1, 0).sum()))
        return _Open(file=file, index=index, counts=counts)

    def _counts(self, unit: Unit, index: tar.Index) -> np.ndarray | None:
        """How often each sample is shown this epoch."""
        chance = 1.0 if self._source.epochs is None else min(self._source.epochs - self._epoch, 1.0)
        if index.shows is None and chance == 1.0:
            return None
        counts = np.zeros(len(index), dtype=np.int64)
        for place in range(unit.stripe, len(index), unit.stripes):
            wanted = chance * (1.0 if index.shows is None else float(index.shows[place]))
            counts[place] = int(wanted)
            if (rest := wanted - int(wanted)) > 0:
                key = (self.name, unit.shard, index.starts[place], self._epoch)
                counts[place] += uniform(self._seed, "weight", *key) < rest
            if place in index.bad:
                counts[place] = min(counts[place], 1)  # once is enough to say so
            if place == len(index) - 1 and index.damage is not None:
                counts[place] = 1  # no filter leaves that unsaid
        return counts

    def _lose(self, unit: Unit, error: Exception) -> None:
        """Leaves out what remains of a unit whose shard cannot be read."""
        file = ShardFile(self._shards[unit.shard], source=self.name)
        lost = None
        if self._open is None and (known := without_shard(file, self._index_dir, self._source.filter)) is not None:
            self._open = self._looked_at(unit, file, *known)
        if self._open is not None:
            lost = self._remaining(unit, self._open)
        self._lost = f"{file.name}: {error}"
        log.warning("source %s: %s is left out from byte %d on (%s)", self.name, file.name, self._offset, error)
        self._ledger.lost(self.name, file.name, BadSample("shard_unreadable", str(error)), lost)

    def _remaining(self, unit: Unit, opened: _Open) -> int:
        """How many times samples of the unit are still to be shown."""
        counts = opened.counts
        if counts is None:
            counts = np.zeros(len(opened.index), dtype=np.int64)
            counts[unit.stripe :: unit.stripes] = 1
        number = self._number(unit, opened)
        return int(
            np.maximum(counts[:number] - self._pass - 1, 0).sum() + np.maximum(counts[number:] - self._pass, 0).sum()
        )

    def _close(self) -> None:
        if self._open is not None:
            self._open.file.close()
        self._open = None

    def _next_unit(self) -> None:
        self._close()
        self._unit, self._offset, self._pass, self._look = self._unit + 1, 0, 0, {}
        if self._unit < len(self._units):
            return
        part_of_an_epoch = self._source.epochs is not None and self._source.epochs - self._epoch < 1
        if self._empty and self._lost:
            raise ValueError(
                f"source {self.name!r}: the share of stream {self._stream} in its {len(self._shards)} shards holds no "
                f"sample, since on_bad_shard=skip left its shards out; the last one: {self._lost}"
            )
        if self._empty and not part_of_an_epoch:
            less = ", or filter less" if self._source.filter else ""
            raise ValueError(
                f"source {self.name!r}: the share of stream {self._stream} in its {len(self._shards)} shards holds no "
                f"sample; use fewer streams (num_streams) or more samples{less}"
            )
        self._epoch, self._unit, self._empty, self._lost = self._epoch + 1, 0, True, ""
        self._order = self._shuffled()

    def _shuffled(self) -> np.ndarray:
        return permutation(len(self._units), self._seed, "shards", self.name, self._stream, self._epoch)
