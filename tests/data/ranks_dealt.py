"""What each rank is dealt: torchrun --nproc-per-node N ranks_dealt.py <folder>; test_trace.py starts and compares.

<folder>/spec.json has the config, the processor's folder, the seed, the steps, and after how many a new stream goes on
from the positions of all ranks. Each rank writes <folder>/dealt-<rank>.jsonl, a line a step: [[number of the row,
[[source, shard, key], ...]], ...]; rank 0 the last positions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sail_train import dist
from sail_train.config import to_dataclass
from sail_train.data import stream
from sail_train.data.config import DataConfig
from sail_train.data.exchange import make_group
from sail_train.data.ready import ReadyRow
from sail_train.data.stream import Stream
from sail_train.processor.processor import SailVLProcessor, load_processor
from sail_train.types import Batch

Record = list[list[Any]]


def dealt(
    config: DataConfig, processor: SailVLProcessor, *, seed: int, positions: Mapping[str, Any] | None
) -> Generator[tuple[Record, Mapping[str, Any]]]:
    """Each step's rows as this rank trains them, and its positions after it."""
    rows: list[Record] = []
    make = stream.batch

    def seen(ready: Sequence[ReadyRow], **more: Any) -> Batch:
        rows.append([[row.index, list(zip(row.sources, row.shards, row.keys, strict=True))] for row in ready])
        return make(ready, **more)

    rank, world, group = dist.rank(), dist.world_size(), make_group(config, timeout_minutes=10)
    with (
        pytest.MonkeyPatch.context() as patch,
        Stream(config, processor, seed=seed, rank=rank, world=world, group=group) as steps,
    ):
        patch.setattr(stream, "batch", seen)
        if positions is not None:
            steps.load_state(positions)
        for step in steps:
            # steps are built ahead: the first that are seen are this one's
            mine, rows[: steps.accumulation] = rows[: steps.accumulation], []
            assert [[key for row in batch for _, _, key in row[1]] for batch in mine] == [
                [key for key in batch.keys if key] for batch in step.batches
            ]
            yield [row for batch in mine for row in batch], step.positions


def main() -> None:
    folder = Path(sys.argv[1])
    spec = json.loads((folder / "spec.json").read_text())
    config: DataConfig = to_dataclass(DataConfig, spec["config"])
    processor = load_processor(spec["processor"])
    dist.init(timeout_minutes=10)
    positions, lines = None, []
    for count in (spec["stop"], spec["steps"] - spec["stop"]):
        found = dealt(config, processor, seed=spec["seed"], positions=positions)
        for _ in range(count):
            record, mine = next(found)
            lines.append(json.dumps(record))
        positions = {name: state for part in dist.gather_objects(dict(mine)) for name, state in part.items()}
        found.close()
    (folder / f"dealt-{dist.rank()}.jsonl").write_text("\n".join(lines))
    if dist.is_main():
        (folder / "positions.json").write_text(json.dumps(positions))
    dist.barrier()
    dist.shutdown()


if __name__ == "__main__":
    main()
