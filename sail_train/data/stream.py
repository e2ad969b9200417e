"""The stream of training steps: shards -> mix -> shuffle -> format -> measure -> pack -> decode -> deal -> batch.

The order of the rows is a pure function of the seed, the sources, the packing settings and `num_streams`: row r of
the run comes from logical stream r mod num_streams and is read by rank r mod world, so the ranks read disjoint files
without speaking to each other, and another number of ranks or workers reads the same rows. A `Reader` reads them, or
`Workers`; then they are dealt to micro steps, and to the ranks of a group that exchanges rows (`data.balance`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sail_train.data.batch import batch
from sail_train.data.config import DataConfig
from sail_train.data.deal import Cost, deal, tokens_and_patches
from sail_train.data.exchange import Group, exchange
from sail_train.data.interleave import check_ranks
from sail_train.data.prefetch import Prefetch
from sail_train.data.quarantine import carried
from sail_train.data.reader import Reader, StreamRow
from sail_train.data.ready import ReadyRow
from sail_train.data.workers import Workers
from sail_train.types import Batch, Step

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor


class Stream(Iterator[Step]):
    """One rank's steps, for ever. Close it, or use it as a context manager.

    Once all sources are exhausted (where their epochs are limited) the steps hold no sample; see `Step.rows`.

    Args:
        processor: measures and cuts; the one that evaluation uses.
        seed: the run's.
        rank, world: this process and how many there are.
        cost: of a row, for dealing; relative.
        group: the ranks that exchange rows; None for a rank that keeps its own.
        per_micro_step: whether ranks wait for each other at every micro step, or at the end of the step.
        pin: whether batches come in page-locked memory.

    Raises:
        ValueError: sources that name no data, or ranks that cannot share the rows equally.
        TooManyBadSamples: while iterating, when a source is over its budget.
        WorkerDied: while iterating, see `Workers`.
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
        group: Group | None = None,
        per_micro_step: bool = True,
        pin: bool = False,
    ) -> None:
        check_ranks(config, rank=rank, world=world, rows=True)
        self._config = config
        self._patch_dim = processor.image_spec.patch_dim
        self._pad_id = processor.token_ids["pad"]
        self._cost = cost
        self._group = group
        self._per_micro_step = per_micro_step
        self._pin = pin
        self._rows_per_step = config.batch_rows // world
        self.accumulation = self._rows_per_step // config.micro_batch
        """Micro batches of a step."""
        numbers = range(rank, config.num_streams, world)
        kind = Workers if config.workers else Reader
        self._reader: Reader | Workers = kind(config, processor, seed=seed, numbers=numbers)
        self.settings = self._reader.settings
        """JSON: what the order of the samples is a function of; a fingerprint of the data."""
        self.asked = self._reader.asked
        """Shares that the sources were given."""
        self.shards = self._reader.shards
        """Of each source that has a weight."""
        self.positions = self._reader.positions()
        """JSON: where the streams stand after the last step that was given out."""
        self._prefetch: Prefetch[Step] | None = None
        self._closed = False
        self._abandoned = False
        """Whether a thread that could not be stopped has the reader."""

    def __next__(self) -> Step:
        if self._closed:
            raise ValueError("the stream is closed; make a new one and load its positions")
        self._check_reader()
        if self._config.prefetch:
            if self._prefetch is None:
                self._prefetch = Prefetch(self._build, self._config.prefetch, together=self._group is not None)
            step = next(self._prefetch)
        else:
            step = self._build()
        self.positions = step.positions
        return step

    def load_state(self, positions: Mapping[str, Any]) -> None:
        """Goes on after the step that carried `positions`; those of all ranks together fit any number of ranks.

        Raises:
            RuntimeError: steps are still being built with other ranks, which do not answer.
        """
        self._stop_prefetch()
        self._check_reader()
        self._reader.load_state(positions)
        self.positions = self._reader.positions()

    @property
    def changes(self) -> list[str]:
        """What the mixture does otherwise than when the loaded positions were saved (`data.allow_mix_change`)."""
        return self._reader.changes

    def close(self) -> None:
        """Ends the background threads and processes."""
        if not self._closed:
            self._closed = True
            self._stop_prefetch()
            self._reader.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def next_row(self) -> StreamRow:
        """This rank's next row, undecoded, without workers. A stream gives out either rows or steps."""
        assert isinstance(self._reader, Reader), "workers decode what they read"
        row = self._reader.next_row()
        self.positions = self._reader.positions()
        return row

    def read_rows(self) -> list[ReadyRow]:
        """The rows of the next step that this rank reads, decoded, in the order of their numbers."""
        rows = self._read()
        self.positions = self._reader.positions()
        return rows

    def _build(self) -> Step:
        read, steps = self._dealt()
        micro_steps = [self._batch(rows) for rows in steps]
        return Step(
            batches=tuple(micro_steps),
            positions=self._reader.positions(),
            fill=sum(row.num_tokens for rows in steps for row in rows) / (len(read) * self._config.seq_length),
            quarantined=tuple(record for row in read for record in row.quarantined),
            rows=sum(bool(row.keys or row.quarantined) for row in read),
            costs=tuple(self._cost_of(rows) for rows in steps),
        )

    def _dealt(self) -> tuple[Sequence[ReadyRow], list[list[ReadyRow]]]:
        """(the rows that this rank read, the rows of each of its micro steps)."""
        if self._group is None:
            rows = self._read()
            return rows, deal(rows, self._config.micro_batch, self._cost)
        return exchange(
            self._read,
            self._rows_per_step,
            self._group,
            self._config.micro_batch,
            self._cost,
            per_micro_step=self._per_micro_step,
        )

    def _read(self) -> list[ReadyRow]:
        rows: list[ReadyRow] = []
        taken: list[Mapping[str, Any]] = []
        with carried(taken):
            for _ in range(self._rows_per_step):
                rows.append(self._reader.next_ready())
                taken += rows[-1].quarantined
        return rows

    def _batch(self, rows: Sequence[ReadyRow]) -> Batch:
        source = min(name for name, source in self._config.sources.items() if source.weight > 0)
        return batch(rows, patch_dim=self._patch_dim, source=source, pad_id=self._pad_id, pin=self._pin)

    def _cost_of(self, rows: Sequence[ReadyRow]) -> tuple[float, float]:
        costs = [self._cost(row) for row in rows]
        return sum(vision for vision, _ in costs), sum(rest for _, rest in costs)

    def _stop_prefetch(self) -> None:
        if self._prefetch is not None:
            self._abandoned = not self._prefetch.close()
            self._prefetch = None

    def _check_reader(self) -> None:
        if self._abandoned:  # two threads would read the same streams
            raise RuntimeError("the stream's thread still waits for other ranks' rows; make a new stream")
