"""Rows that change hands, with threads for ranks; tests/loops/test_parallel.py has real ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sail_train.data.config import DataConfig
from sail_train.data.exchange import Sent, exchange, group_size
from sail_train.data.prefetch import Prefetch
from sail_train.data.ready import ReadyRow
from sail_train.data.stream import Stream
from sail_train.processor.processor import SailVLProcessor
from sail_train.types import Step


class Switchboard:
    """What the ranks of a played group share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.tables: list[np.ndarray] = [np.zeros(0)] * size
        self.messages: dict[int, np.ndarray] = {}


class PlayedGroup:
    def __init__(self, board: Switchboard, rank: int) -> None:
        self._board, self.rank, self.size = board, rank, board.size
        self.moved = 0

    def gather(self, table: np.ndarray) -> np.ndarray:
        self._board.tables[self.rank] = table
        self._board.barrier.wait()
        tables = np.stack(self._board.tables)
        self._board.barrier.wait()
        return tables

    def swap(self, messages: dict[int, np.ndarray], sent: Sequence[Sent]) -> dict[int, np.ndarray]:
        self._board.messages |= messages
        self._board.barrier.wait()
        received = {one.tag: self._board.messages[one.tag] for one in sent if one.receiver == self.rank}
        assert all(len(received[one.tag]) == one.size for one in sent if one.receiver == self.rank)
        self._board.barrier.wait()
        self.moved += len(received)
        return received


def together(size: int, work: Callable[[PlayedGroup], Any]) -> list[Any]:
    """What each rank's work returns."""
    board = Switchboard(size)
    with ThreadPoolExecutor(size) as ranks:
        return list(ranks.map(work, [PlayedGroup(board, rank) for rank in range(size)]))


def samples(step: Step) -> list[Any]:
    """Of a step's micro batches, each sample's tokens and patches."""
    found: list[Any] = []
    for batch in step.batches:
        bounds = zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True)
        for key, source, (start, end) in zip(batch.keys, batch.sources, bounds, strict=True):
            found.append((source, key, batch.input_ids[start:end].tolist(), batch.labels[start:end].tolist()))
        found.append(("patches", sorted(bytes(row) for row in batch.patches.numpy())))
    return found


@pytest.mark.parametrize("per_micro_step", [True, False])
def test_the_rows_of_a_step_stay_and_positions_stay_with_their_readers(
    mixture: DataConfig, processor: SailVLProcessor, per_micro_step: bool
) -> None:
    mixture.batch_rows = 16

    def steps(group: PlayedGroup | None, rank: int, world: int) -> list[Step]:
        options: dict[str, Any] = {"group": group, "per_micro_step": per_micro_step}
        with Stream(mixture, processor, seed=2, rank=rank, world=world, **options) as stream:
            return [next(stream) for _ in range(6)]

    moved = []

    def exchanged(group: PlayedGroup) -> list[Step]:
        made = steps(group, group.rank, 2)
        moved.append(group.moved)
        return made

    plain = [steps(None, rank, 2) for rank in range(2)]
    ranks = together(2, exchanged)
    assert min(moved) > 0
    for place in range(6):
        before, after = ([steps[place] for steps in by_rank] for by_rank in (plain, ranks))
        for name in ("positions", "quarantined"):
            assert [vars(step)[name] for step in before] == [vars(step)[name] for step in after]
        assert [len(step.batches) for step in after] == [8, 8]

        def whole(steps: list[Step]) -> list[Any]:
            return sorted((one for step in steps for one in samples(step) if one[0] != "patches"), key=repr)

        assert whole(before) == whole(after)
        pixels = [sorted(row for step in one for part in samples(step) if part[0] == "patches" for row in part[1])
                  for one in (before, after)]  # fmt: skip
        assert pixels[0] == pixels[1]
    waits = [sum(max(sum(map(sum, steps[place].costs)) for steps in by_rank) for place in range(6))
             for by_rank in (plain, ranks)]  # fmt: skip
    assert waits[1] < waits[0]


def test_a_rank_that_cannot_read_says_so_and_nobody_waits() -> None:
    def work(group: PlayedGroup) -> str:
        def read() -> list[ReadyRow]:
            if group.rank == 1:
                raise OSError("disk gone")
            names = ("a",)
            return [ReadyRow(index=group.rank, keys=names, sources=names, shards=names, lengths=(1,), grids=(),
                             num_trained=1, buffer=np.zeros(8, np.uint8))]  # fmt: skip

        with pytest.raises((OSError, RuntimeError)) as caught:
            exchange(read, 1, group, 1, lambda row: (0.0, 1.0), per_micro_step=True)
        return str(caught.value)

    said = together(3, work)
    assert said[1] == "disk gone" and "rank 1 of the group that shares its rows could not read its own" in said[0]
    assert said[0] == said[2]


def test_a_rank_whose_row_cannot_become_a_message_says_so_before_anyone_waits_for_it() -> None:
    def work(group: PlayedGroup) -> str:
        def read() -> list[ReadyRow]:
            names = ("a",)
            shape = (1, 8) if group.rank == 1 else (8,)  # a message is of flat bytes
            return [ReadyRow(index=group.rank, keys=names, sources=names, shards=names, lengths=(1,), grids=(),
                             num_trained=1, buffer=np.zeros(shape, np.uint8))]  # fmt: skip

        with pytest.raises((ValueError, RuntimeError)) as caught:
            # all rows cost the same, so that none would leave its rank
            exchange(read, 1, group, 1, lambda row: (0.0, 1.0), per_micro_step=True)
        return str(caught.value)

    said = together(3, work)
    assert "dimensions" in said[1] and said[0] == said[2] and "could not read its own" in said[0]


def test_a_stream_whose_thread_other_ranks_keep_waiting_is_not_used_by_a_second_thread(
    mixture: DataConfig, processor: SailVLProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture.prefetch = 1
    monkeypatch.setattr("sail_train.data.prefetch.PATIENCE", 0.05)
    stream = Stream(mixture, processor, seed=2, rank=0, world=2, group=PlayedGroup(Switchboard(2), 0))
    positions, built, answered = stream.positions, threading.Semaphore(1), threading.Event()

    def build() -> Any:
        if not built.acquire(blocking=False):
            answered.wait(20)  # the others are gone
        return SimpleNamespace(positions=positions)

    monkeypatch.setattr(stream, "_build", build)
    next(stream)
    for use in (lambda: stream.load_state(positions), lambda: next(stream), lambda: stream.load_state(positions)):
        with pytest.raises(RuntimeError, match="still waits for other ranks' rows; make a new stream"):
            use()
    answered.set()
    stream.close()


def test_ranks_that_stop_at_different_times_leave_nobody_waiting() -> None:
    """Each closes its prefetch when it likes, with items under way that all of them build together."""

    def work(group: PlayedGroup) -> int:
        built = []

        def build() -> int:
            group.gather(np.zeros(1))
            built.append(1)
            return len(built)

        ahead = Prefetch(build, 3, together=True)
        assert [next(ahead) for _ in range(5)] == [1, 2, 3, 4, 5]
        if group.rank == 0:
            threading.Event().wait(0.2)
        ahead.close()
        return len(built)

    assert together(3, work) == [8, 8, 8]


def test_groups_are_of_a_node_of_all_or_of_a_given_size() -> None:
    def size(**values: Any) -> int:
        return group_size(DataConfig(**values), world=16, local_world=8)

    assert size() == 1 and size(balance="node") == 8 and size(balance="world") == 16
    assert size(balance="world", balance_group=4) == 4
    with pytest.raises(ValueError, match="16 ranks cannot be divided into groups of 3; .* may be 1, 2, 4, 8, 16"):
        size(balance="node", balance_group=3)
