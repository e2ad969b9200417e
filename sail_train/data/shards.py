"""The first step of the stream: one stream's samples of one source.

`SourceReader` yields the samples of the stream's share of the shards, epoch after epoch in a new order of shards, for
ever or as often as the source allows. Where the index of a shard has conditions or weights
to honour, a part is gone through several times: pass p shows the samples that are to be shown more than p times.
State: (epoch, place in the epoch's order, pass, byte offset), and what the open shard looked like.
"""

from __future__ import annotations

import logging
import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sail_train.data import tar
from sail_train.data.candidate import Candidate
from sail_train.data.config import SourceConfig
from sail_train.data.draw import permutation, uniform
from sail_train.data.index import without_shard
from sail_train.data.quarantine import Ledger
from sail_train.data.shard_file import ShardFile, UnreadableShard
from sail_train.data.share import Unit, share
from sail_train.data.waiting import CHANGED, WaitingSamples
from sail_train.types import BadSample

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Open:
    """The shard that is being read, and what of it this unit shows."""

    unit: Unit
    file: ShardFile
    index: tar.Index
    counts: np.ndarray | None
    """(samples,) int64: how often each is shown this epoch, 0 outside the unit; None: those of the unit once each."""
    next: int
    """Number of the sample at the offset."""


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
        self._left_out = 0
        """Samples of this epoch that a filter or their weight leaves out, since the position."""
        self._lost = ""
        """The last shard that was left out in this epoch, and why."""
        self.waiting = WaitingSamples(name, shards, source=self._source, index_dir=index_dir, ledger=ledger)

    @property
    def exhausted(self) -> bool:
        return self._source.epochs is not None and self._epoch >= self._source.epochs

    def __next__(self) -> Candidate:
        while not self.exhausted:
            try:
                candidate = self._next_of_unit()
            except (OSError, UnreadableShard) as error:
                if self._source.on_bad_shard == "stop":
                    raise
                self._lose(self._current, error)
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
        self._lost = ""
        self.waiting.forget()

    @property
    def _current(self) -> Unit:
        unit: Unit = self._units[int(self._order[self._unit])]
        return unit

    @property
    def _begun(self) -> bool:
        """Whether anything of the unit was read."""
        return self._offset > 0 or self._pass > 0

    def _next_of_unit(self) -> Candidate | None:
        """The next sample of the unit; None when it is used up."""
        opened = self._open = self._open or self._opened(self._current)
        file, index = opened.file, opened.index
        while (place := self._place(opened)) is not None:
            self._empty = False
            start, end = index.span(place)
            try:
                raw = file.sample(index, place)
            except BadSample as error:
                if place not in index.bad and index.checksums is None:
                    raise ValueError(f"shard {file.name!r} changed while it was read: {error}") from error
                self._offset, opened.next = end, place + 1
                self._ledger.bad(self.name, file.name, index.key(place), error)
                continue
            self._offset, opened.next = end, place + 1
            return Candidate(raw=raw, shard=opened.unit.shard, epoch=self._epoch, size=end - start)
        return None

    def _place(self, opened: _Open) -> int | None:
        """Number of the next sample in the unit's shard; None when the unit is used up."""
        unit, counts = opened.unit, opened.counts
        while True:
            number = opened.next + (unit.stripe - opened.next) % unit.stripes
            while counts is not None and number < len(counts) and counts[number] <= self._pass:
                number += unit.stripes
            if number < len(opened.index.starts):
                return number
            if counts is None or counts.max(initial=0) <= self._pass + 1:
                return None
            self._pass, self._offset, opened.next = self._pass + 1, 0, 0

    def _number(self, file: ShardFile, index: tar.Index) -> int:
        """Number of the sample at the offset."""
        number = bisect_left(index.starts, self._offset)
        if self._offset not in (0, index.end) and self._offset not in index.starts[number : number + 1]:
            raise ValueError(f"{CHANGED} source {self.name!r}, shard {file.name!r}: no sample at byte {self._offset}")
        return number

    def _opened(self, unit: Unit) -> _Open:
        self.waiting.forget()
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
            left_out = int((of_unit == 0).sum())
            self._left_out += left_out
            self._ledger.left_out(self.name, left_out, int(np.maximum(of_unit - 1, 0).sum()))
        return _Open(unit=unit, file=file, index=index, counts=counts, next=self._number(file, index))

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
        return int(
            np.maximum(counts[: opened.next] - self._pass - 1, 0).sum()
            + np.maximum(counts[opened.next :] - self._pass, 0).sum()
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
            raise ValueError(
                f"source {self.name!r}: the share of stream {self._stream} in its {len(self._shards)} shards holds no "
                f"sample; {self._why_empty}"
            )
        self._epoch, self._unit, self._empty, self._lost, self._left_out = self._epoch + 1, 0, True, "", 0
        self._order = self._shuffled()

    @property
    def _why_empty(self) -> str:
        if not self._left_out:
            return "use fewer streams (num_streams) or more samples"
        if self._source.filter:
            return f"{self._left_out} are left out by its filter or their weight of 0: filter less, or take it away"
        return (
            f"{self._left_out} have weight 0 in the indexes' column `weight`: weigh them anew (`data balance`), or "
            f"leave the source out with data.sources.{self.name}.weight=0"
        )

    def _shuffled(self) -> np.ndarray:
        return permutation(len(self._units), self._seed, "shards", self.name, self._stream, self._epoch)
