"""Logical streams read by one process, taken in turn: undecoded rows, or rows that are ready to be trained on.

The trainer has one for all streams of its rank, or each of its workers has one for some of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sail_train.data.buffered import Buffered
from sail_train.data.config import DataConfig
from sail_train.data.decode import decode
from sail_train.data.interleave import Interleave, budget_of, candidates, mixture, order_settings, shard_lists
from sail_train.data.listing import ShardList
from sail_train.data.measure import Measure
from sail_train.data.pack import Pack, Packed
from sail_train.data.quarantine import Ledger, carried
from sail_train.data.ready import ReadyRow, ready
from sail_train.types import Row

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

NO_LIMIT = 1e15
"""Bad samples that a worker puts up with: it sees a part of a rank's, and the trainer counts all of them."""


@dataclass(frozen=True, kw_only=True)
class StreamRow(Row):
    """A row that remembers where its samples came from, should their pixels fail."""

    shards: tuple[str, ...]


class RowStream:
    """Packed rows of one logical stream, with the ledger that its position holds; empty ones once it is exhausted."""

    def __init__(self, rows: Pack, ledger: Ledger) -> None:
        self.ledger = ledger
        self._rows = rows

    def __next__(self) -> tuple[Packed, ...]:
        # streams end at different rows: those that are through wait, so that the others' rows keep their numbers
        return next(self._rows, ())

    def state(self) -> dict[str, Any]:
        return {**self._rows.state(), **self.ledger.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.ledger.load_state(state)
        self._rows.load_state(state)


class Reader:
    """Rows of the streams `numbers`, in the order of their numbers in the run, for ever. Close it.

    Args:
        limited: whether the sources' budgets of bad samples hold here.
        settings: those of the run, where they are known already; they take a look at every shard.

    Raises:
        ValueError: sources that name no data.
        TooManyBadSamples: while iterating, when a source is over its budget.
    """

    def __init__(
        self,
        config: DataConfig,
        processor: SailVLProcessor,
        *,
        seed: int,
        numbers: Sequence[int],
        limited: bool = True,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not limited:
            unlimited = {name: dataclasses.replace(one, max_bad=NO_LIMIT) for name, one in config.sources.items()}
            config = dataclasses.replace(config, sources=unlimited)
        self._num_streams = config.num_streams
        self._processor = processor
        shards = shard_lists(config)
        self.shards: Mapping[str, ShardList] = shards
        """Of each source that has a weight."""
        self.asked = mixture(config, shards)
        """Shares that the sources were given."""
        budget, measure = budget_of(config), Measure(config, processor, seed=seed)
        # a worker has one share of several of its rank's streams
        buffered = Buffered(config, streams=len(numbers) * max(1, config.workers), warns=0 in numbers)
        self._streams: dict[int, RowStream] = {}
        for number in numbers:
            ledger = budget.ledger()
            waiting = candidates(config, shards, seed=seed, stream=number, ledger=ledger, asked=self.asked)
            packed = Pack(waiting, measure, config, ledger=ledger, buffered=buffered)
            self._streams[number] = RowStream(packed, ledger)
        self.settings = dict(settings or settings_of(config, shards, processor, seed=seed))
        """JSON: what the order of the samples is a function of; a fingerprint of the data."""
        self._rows = Interleave(
            self._streams, self.settings, num_streams=config.num_streams, allow_mix_change=config.allow_mix_change
        )
        self._threads = ThreadPoolExecutor(config.decode_threads) if config.decode_threads > 1 else None

    @property
    def changes(self) -> list[str]:
        """See `Interleave.changes`."""
        return self._rows.changes

    def positions(self) -> dict[str, Any]:
        """JSON: where the streams stand after the last row."""
        return self._rows.positions()

    def load_state(self, positions: Mapping[str, Any]) -> None:
        """Goes on after `positions`, which may hold other streams too."""
        self._rows.load_state(positions)

    def check(self, positions: Mapping[str, Any]) -> None:
        """ValueError where `load_state` would refuse the positions at a look."""
        self._rows.check(positions)

    def next_row(self) -> StreamRow:
        """The next row, undecoded."""
        index, packed = next(self._rows)
        number = index % self._num_streams
        return StreamRow(
            index=index,
            samples=tuple(sample.encoded for sample in packed),
            shards=tuple(sample.shard for sample in packed),
            position=self._rows.position(number),
            quarantined=self._streams[number].ledger.take(),
        )

    def next_ready(self) -> ReadyRow:
        """The next row, decoded; the samples whose pixels failed have left it."""
        row = self.next_row()
        number = row.index % self._num_streams
        decoded, failed = decode(row.samples, self._processor, run=self._threads.map if self._threads else map)
        ledger, position = self._streams[number].ledger, row.position
        with carried(row.quarantined):
            for place, error in failed:
                ledger.spoilt(row.samples[place].source, row.shards[place], row.samples[place].key, error)
        if failed:
            self._rows.refresh(number, ledger.state())
            position = self._rows.position(number)
        lost = {place for place, _ in failed}
        shards = [shard for place, shard in enumerate(row.shards) if place not in lost]
        quarantined = (*row.quarantined, *ledger.take())
        return ready(row.index, decoded, shards, position=position, quarantined=quarantined)

    def close(self) -> None:
        """Ends the threads."""
        if self._threads is not None:
            self._threads.shutdown()


def settings_of(
    config: DataConfig, shards: Mapping[str, ShardList], processor: SailVLProcessor, *, seed: int
) -> dict[str, Any]:
    """JSON: `order_settings`, and how rows are made of what is drawn.

    All of them are always named: a position that lacks one was saved by a version with other defaults, and is refused.
    """
    packed = {"packing": config.packing, "max_wait": config.max_wait, "overlong": config.overlong}
    return order_settings(config, shards, processor, seed=seed) | packed
