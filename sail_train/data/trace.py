"""Which samples each global step is made of, without a model: the order of a run, to look up and to compare.

All ranks are played by one process, one after the other, each with its own stream (and workers). A step's rows are
listed by their number in the run, the samples of a row in its order, by source, shard and key; a sample whose pixels
failed has left its row. So the trace of a run does not depend on ranks or workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sail_train.data import remote
from sail_train.data.config import DataConfig
from sail_train.data.interleave import SETTINGS, shard_lists
from sail_train.data.reader import Reader, StreamRow
from sail_train.data.ready import ReadyRow
from sail_train.data.stream import Stream

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor


class Trace(Iterator[dict[str, Any]]):
    """{"step": 1 for the first step of a run, "rows": [[sample, ...], ...]} of each step until the data is exhausted.

    Args:
        ranks: how many to play.
        positions: of all ranks, to go on from; None for the beginning.
        start: steps before the first that is listed; those after `positions` are packed without decoding. None: the
            steps of `positions`.
        decode: whether to decode, and so leave out the samples whose pixels fail.

    Raises:
        ValueError: ranks, workers, positions or `start` that do not fit.
    """

    def __init__(
        self,
        config: DataConfig,
        processor: SailVLProcessor,
        *,
        seed: int,
        ranks: int = 1,
        positions: Mapping[str, Any] | None = None,
        start: int | None = None,
        decode: bool = True,
    ) -> None:
        if config.workers and not decode:
            raise ValueError(
                f"--no-decode with --workers {config.workers}: workers decode what they read; leave one out"
            )
        # a trace has no micro steps, and its steps are read when they are asked for
        self._config = dataclasses.replace(config, micro_batch=1, prefetch=0, balance="off", balance_group=None)
        self._decode = decode
        self._label = Labels(config)
        positions, self.step = self._forward(processor, seed, positions, start)
        self._streams: list[Stream] = []
        try:
            for rank in range(ranks):
                self._streams.append(Stream(self._config, processor, seed=seed, rank=rank, world=ranks))
                if positions is not None:
                    self._streams[-1].load_state(positions)
        except BaseException:
            self.close()
            raise

    def __next__(self) -> dict[str, Any]:
        rows = sorted((row for stream in self._streams for row in self._rows(stream)), key=lambda row: row.index)
        if not any(_samples(row) or row.quarantined for row in rows):
            raise StopIteration
        self.step += 1
        return {"step": self.step, "rows": [[self._label(*sample) for sample in _samples(row)] for row in rows]}

    def load_state(self, positions: Mapping[str, Any]) -> None:
        """Goes on after `positions`, which are those of all ranks."""
        self.step = steps_of(positions, self._config)
        for stream in self._streams:
            stream.load_state(positions)

    def positions(self) -> dict[str, Any]:
        """JSON: where all streams stand after the last step."""
        return {name: state for stream in self._streams for name, state in stream.positions.items()}

    def close(self) -> None:
        """Ends the workers."""
        for stream in self._streams:
            stream.close()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, stream: Stream) -> list[ReadyRow] | list[StreamRow]:
        if self._decode:
            return stream.read_rows()
        return [stream.next_row() for _ in range(self._config.batch_rows // len(self._streams))]

    def _forward(
        self, processor: SailVLProcessor, seed: int, positions: Mapping[str, Any] | None, start: int | None
    ) -> tuple[Mapping[str, Any] | None, int]:
        """The positions before the first step that is listed, and the steps before it."""
        done = steps_of(positions, self._config) if positions is not None else 0
        start = done if start is None else start
        if start < done:
            raise ValueError(f"--start {start} lies before the state, which is after step {done}; leave the state out")
        if start == done:
            return positions, start
        reader = Reader(self._config, processor, seed=seed, numbers=range(self._config.num_streams))
        if positions is not None:
            reader.load_state(positions)
        for _ in range((start - done) * self._config.batch_rows):
            reader.next_row()
        reader.close()
        return reader.positions(), start


class Labels:
    """The name of a sample: source, as much of the shard's path as tells it from the source's others, and key."""

    def __init__(self, config: DataConfig) -> None:
        self._parts = {}
        for source, shards in shard_lists(config).items():
            paths = [remote.shown(path).split("/") for path in shards]
            longest = max(map(len, paths))
            distinct = (n for n in range(1, longest) if len({tuple(path[-n:]) for path in paths}) == len(paths))
            self._parts[source] = next(distinct, longest)

    def __call__(self, source: str, shard: str, key: str) -> str:
        parts = remote.shown(shard).split("/")[-self._parts[source] :]
        return f"{source}:{'/'.join(parts)}:{key}"


def steps_of(positions: Mapping[str, Any], config: DataConfig) -> int:
    """Whole steps that lie before positions; ValueError if they are not of a whole step."""
    missing = [number for number in range(config.num_streams) if str(number) not in positions]
    if missing or SETTINGS not in positions:
        raise ValueError(f"the state holds no position for streams {missing}; give that of all ranks together")
    rows = sum(positions[str(number)]["taken"] for number in range(config.num_streams))
    if rows % config.batch_rows:
        raise ValueError(f"the state is after {rows} rows, no multiple of data.batch_rows={config.batch_rows}")
    return rows // config.batch_rows


def _samples(row: ReadyRow | StreamRow) -> list[tuple[str, str, str]]:
    """(source, shard, key) of each sample."""
    if isinstance(row, ReadyRow):
        return list(zip(row.sources, row.shards, row.keys, strict=True))
    return [(sample.source, shard, sample.key) for sample, shard in zip(row.samples, row.shards, strict=True)]
