"""What became of the samples of a folder (trained on, left out, bad, lost), and ways to spoil its shards."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from sail_train.data import index
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.stream import Stream
from sail_train.processor.processor import SailVLProcessor

Records = list[dict[str, Any]]


@dataclasses.dataclass(kw_only=True)
class Account:
    trained: list[str]
    read: int
    bad: int
    left_out: int
    again: int
    lost: int
    records: Records

    @property
    def total(self) -> int:
        return self.read - self.again + self.left_out

    def reasons(self) -> set[tuple[str, str]]:
        return {(record["key"], record["reason"]) for record in self.records}


def config_of(folder: Path, **more: Any) -> DataConfig:
    source = SourceConfig(**{"shards": f"{folder}/*.tar", "max_bad": 1000, "epochs": 1, **more})
    return DataConfig(
        sources={"s": source},
        seq_length=160,
        max_patches=64,
        num_streams=2,
        batch_rows=2,
        shuffle_buffer=4,
        pack_buffer=3,
        prefetch=0,
    )


def read_once(config: DataConfig, processor: SailVLProcessor, positions: Any = None) -> Account:
    """All steps of one epoch, decoded."""
    trained: list[str] = []
    records: Records = []
    with Stream(config, processor, seed=0) as stream:
        if positions is not None:
            stream.load_state(positions)
        while (step := next(stream)).rows:
            trained += [key for batch in step.batches for key in batch.keys if key]
            records += step.quarantined
        states = [state for name, state in stream.positions.items() if name != "settings"]
    read, bad = (sum(state["counts"]["s"][place] for state in states) for place in (0, 1))
    apart = [sum(state.get("apart", {}).get("s", (0, 0, 0))[place] for state in states) for place in range(3)]
    return Account(
        trained=trained, read=read, bad=bad, left_out=apart[0], again=apart[1], lost=apart[2], records=records
    )


def assert_adds_up(account: Account, listed: int) -> None:
    assert account.total == listed
    assert len(account.trained) == account.read - account.bad, "what is read is trained on, or quarantined"
    shards = [record["samples"] for record in account.records if "samples" in record]
    lost = sum(1 if samples is None else samples for samples in shards)
    named = sum("samples" not in record for record in account.records)
    assert (named + lost, lost) == (account.bad, account.lost), "each is written down"


def indexed(folder: Path) -> None:
    for shard in sorted(folder.glob("*.tar")):
        index.ensure_index(str(shard))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
