"""The stream of training steps: shards -> mix -> shuffle -> format -> measure -> pack -> deal -> decode -> batch.

The order of the rows is a pure function of the seed, the sources, the packing settings and `num_streams`: row r of
the run comes from logical stream r mod num_streams and is trained by rank r mod world, so the ranks read disjoint
files without speaking to each other, and another number of ranks reads the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sail_train.data.batch import batch, placeholder
from sail_train.data.config import DataConfig
from sail_train.data.deal import Cost, deal, tokens_and_patches
from sail_train.data.decode import Decoded, decode
from sail_train.data.interleave import (
    Interleave,
    budget_of,
    candidates,
    check_ranks,
    order_settings,
    shard_lists,
)
from sail_train.data.measure import Measure
from sail_train.data.pack import Pack, Packed
from sail_train.data.prefetch import Prefetch
from sail_train.data.quarantine import Ledger
from sail_train.types import Batch, Row, Step

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor


@dataclass(frozen=True, kw_only=True)
class StreamRow(Row):
    """A row that remembers where its samples came from, should their pixels fail."""

    shards: tuple[str, ...]


class RowStream:
    """Packed rows of one logical stream, with the ledger that its position holds."""

    def __init__(self, rows: Pack, ledger: Ledger) -> None:
        self.ledger = ledger
        self._rows = rows

    def __next__(self) -> tuple[Packed, ...]:
        return next(self._rows)

    def state(self) -> dict[str, Any]:
        return {**self._rows.state(), **self.ledger.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.ledger.load_state(state)
        self._rows.load_state(state)


class Stream(Iterator[Step]):
    """One rank's steps, for ever. Close it, or use it as a context manager, where `prefetch` is above 0.

    Args:
        processor: measures and cuts; the one that evaluation uses.
        seed: the run's.
        rank, world: this process and how many there are.
        cost: of a row, for dealing; relative.

    Raises:
        ValueError: sources that name no data, or ranks that cannot share the rows equally.
        TooManyBadSamples: while iterating, when a source is over its budget.
    """

    def __init__(
        self,
        config: DataConfig,
        processor: SailVLProcessor,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        cost: Cost = tokens_and_patches,
    ) -> None:
        check_ranks(config, rank=rank, world=world, rows=True)
        self._config = config
        self._processor = processor
        self._cost = cost
        self._rows_per_step = config.batch_rows // world
        self.accumulation = self._rows_per_step // config.micro_batch
        """Micro batches of a step."""
        shards = shard_lists(config)
        budget, measure = budget_of(config), Measure(config, processor, seed=seed)
        self._streams: dict[int, RowStream] = {}
        for number in range(rank, config.num_streams, world):
            ledger = budget.ledger()
            waiting = candidates(config, shards, seed=seed, stream=number, ledger=ledger)
            self._streams[number] = RowStream(Pack(waiting, measure, config, ledger=ledger), ledger)
        self.settings = order_settings(config, shards, processor, seed=seed)
        """JSON: what the order of the samples is a function of; a fingerprint of the data."""
        self._rows = Interleave(self._streams, self.settings, rank=rank, world=world)
        self.positions = self._rows.positions()
        """JSON: where the streams stand after the last step that was given out."""
        self._threads = ThreadPoolExecutor(config.decode_threads) if config.decode_threads > 1 else None
        self._prefetch: Prefetch[Step] | None = None
        self._closed = False

    def __next__(self) -> Step:
        if self._closed:
            raise ValueError("the stream is closed; make a new one and load its positions")
        if self._config.prefetch:
            if self._prefetch is None:
                self._prefetch = Prefetch(self._build, self._config.prefetch)
            step = next(self._prefetch)
        else:
            step = self._build()
        self.positions = step.positions
        return step

    def load_state(self, positions: Mapping[str, Any]) -> None:
        """Goes on after the step that carried `positions`; those of all ranks together fit any number of ranks."""
        self._stop_prefetch()
        self._rows.load_state(positions)
        self.positions = self._rows.positions()

    def close(self) -> None:
        """Ends the background threads."""
        self._closed = True
        self._stop_prefetch()
        if self._threads is not None:
            self._threads.shutdown()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next_row(self) -> StreamRow:
        """This rank's next row, undecoded. A stream gives out either rows or steps."""
        index, packed = next(self._rows)
        ledger = self._ledger(index)
        return StreamRow(
            index=index,
            samples=tuple(sample.encoded for sample in packed),
            shards=tuple(sample.shard for sample in packed),
            position=self._rows.position(index % self._config.num_streams),
            quarantined=ledger.take(),
        )

    def _build(self) -> Step:
        rows = [self.next_row() for _ in range(self._rows_per_step)]
        batches, spoilt, tokens = [], [], 0
        for group in deal(rows, self._config.micro_batch, self._cost):
            made, records = self._batch(group)
            batches.append(made)
            spoilt.extend(records)
            tokens += int(made.cu_seqlens[-1])
        return Step(
            batches=tuple(batches),
            positions=self._rows.positions(),
            fill=tokens / (len(rows) * self._config.seq_length),
            quarantined=(*(record for row in rows for record in row.quarantined), *spoilt),
        )

    def _batch(self, rows: list[StreamRow]) -> tuple[Batch, list[dict[str, Any]]]:
        """The rows' tensors, and records of the samples whose pixels failed."""
        samples: list[Decoded] = []
        records: list[dict[str, Any]] = []
        for row in rows:
            decoded, failed = decode(row.samples, self._processor, run=self._threads.map if self._threads else map)
            samples.extend(decoded)
            ledger = self._ledger(row.index)
            for place, error in failed:
                sample = row.samples[place]
                ledger.spoilt(sample.source, row.shards[place], sample.key, error)
            if failed:
                self._rows.refresh(row.index % self._config.num_streams, ledger.state())
                records.extend(ledger.take())
        if not samples:
            samples = [placeholder(rows[0].samples[0], token_id=self._processor.token_ids["pad"])]
        return batch(samples, patch_dim=self._processor.image_spec.patch_dim), records

    def _ledger(self, index: int) -> Ledger:
        return self._streams[index % self._config.num_streams].ledger

    def _stop_prefetch(self) -> None:
        if self._prefetch is not None:
            self._prefetch.close()
            self._prefetch = None
