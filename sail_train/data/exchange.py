"""Rows that change hands: a group of ranks tells each other what its rows cost, and sends each row to who trains it.

In the order of a step: `gather` the costs and sizes of all rows of the group (one small collective) -> every rank
computes the same `assign`ment from them -> `swap` the rows, decoded, one message each. The ranks have gloo groups of
their own for this, so that it runs in the prefetch thread beside the training's collectives.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import distributed

from sail_train import dist
from sail_train.data.config import DataConfig
from sail_train.data.deal import Cost, assign
from sail_train.data.ready import ReadyRow, from_bytes, to_bytes

FAILED = -1.0
"""In place of a cost: the rank could not read its rows."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One message between two members of a group."""

    tag: int
    sender: int
    receiver: int
    size: int
    """Bytes."""


class Group(Protocol):
    """Ranks that exchange rows, numbered from 0."""

    rank: int
    size: int

    def gather(self, table: np.ndarray) -> np.ndarray:
        """(size, ...) everybody's float64 table, of one shape on all ranks."""
        ...

    def swap(self, messages: dict[int, np.ndarray], sent: Sequence[Sent]) -> dict[int, np.ndarray]:
        """Sends this rank's messages by tag, and returns by tag those that `sent` has for it."""
        ...


class GlooGroup:
    """A group of torch's ranks."""

    def __init__(self, group: distributed.ProcessGroup, ranks: Sequence[int]) -> None:
        self._group = group
        self._ranks = list(ranks)
        self.rank = self._ranks.index(dist.rank())
        self.size = len(self._ranks)

    def gather(self, table: np.ndarray) -> np.ndarray:
        mine = torch.from_numpy(np.ascontiguousarray(table, dtype=np.float64))
        tables = [torch.empty_like(mine) for _ in self._ranks]
        distributed.all_gather(tables, mine, group=self._group)
        return torch.stack(tables).numpy()

    def swap(self, messages: dict[int, np.ndarray], sent: Sequence[Sent]) -> dict[int, np.ndarray]:
        received = {one.tag: torch.empty(one.size, dtype=torch.uint8) for one in sent if one.receiver == self.rank}
        works = []
        for one in sent:
            if one.receiver == self.rank:
                peer = self._ranks[one.sender]
                works.append(distributed.irecv(received[one.tag], src=peer, group=self._group, tag=one.tag))
        leaving = []  # kept until they have been sent
        for one in sent:
            if one.sender == self.rank:
                leaving.append(torch.from_numpy(messages[one.tag]))
                peer = self._ranks[one.receiver]
                works.append(distributed.isend(leaving[-1], dst=peer, group=self._group, tag=one.tag))
        for work in works:
            assert work is not None, "both are members"
            work.wait()
        return {tag: tensor.numpy() for tag, tensor in received.items()}


def group_size(config: DataConfig, *, world: int, local_world: int) -> int:
    """Ranks in a group that exchanges rows; 1 where nothing is exchanged.

    Raises:
        ValueError: the ranks cannot be divided into such groups.
    """
    if config.balance == "off":
        return 1
    size = config.balance_group or (world if config.balance == "world" else local_world)
    if world % size:
        fits = ", ".join(str(ranks) for ranks in range(1, world + 1) if world % ranks == 0)
        raise ValueError(f"{world} ranks cannot be divided into groups of {size}; data.balance_group may be {fits}")
    return size


def make_group(config: DataConfig, *, timeout_minutes: float) -> Group | None:
    """This rank's group; None where it is alone. All ranks call it together, after `dist.init`."""
    world = dist.world_size()
    size = group_size(config, world=world, local_world=dist.local_world_size())
    if size == 1:
        return None
    mine = None
    for first in range(0, world, size):  # each rank must make all groups, in one order
        ranks = list(range(first, first + size))
        timeout = datetime.timedelta(minutes=timeout_minutes)
        group = distributed.new_group(ranks, backend="gloo", timeout=timeout)
        if dist.rank() in ranks:
            mine = GlooGroup(group, ranks)
    return mine


def exchange(
    read: Callable[[], Sequence[ReadyRow]], num_rows: int, group: Group, micro_batch: int, cost: Cost,
    *, per_micro_step: bool,
) -> tuple[Sequence[ReadyRow], list[list[ReadyRow]]]:  # fmt: skip
    """(the rows of this step that this rank read, `num_rows` of them; its micro steps' rows).

    A rank that cannot read its rows says so to the others before it raises, so that none waits for it. What can fail
    on one rank alone comes before that, the messages of rows that may stay included: nearly all of them leave.
    """
    table = np.full((num_rows, 2), FAILED)
    try:
        rows = read()
        ready = [to_bytes(row) for row in rows]
        table = np.array([(sum(cost(row)), len(message)) for row, message in zip(rows, ready, strict=True)])
    finally:
        tables = group.gather(table)  # (size, num_rows, 2)
    failed = [rank for rank in range(group.size) if (tables[rank, :, 0] == FAILED).any()]
    if failed:
        raise RuntimeError(f"rank {failed[0]} of the group that shares its rows could not read its own; see its error")
    places = assign(tables[:, :, 0].reshape(-1), group.size, micro_batch, per_micro_step=per_micro_step)
    sent = _sent(places, tables[:, :, 1].reshape(-1), num_rows)
    first = group.rank * num_rows
    messages = {one.tag: ready[one.tag - first] for one in sent if one.sender == group.rank}
    received = group.swap(messages, sent)
    have = {first + number: row for number, row in enumerate(rows)}
    have |= {tag: from_bytes(message) for tag, message in received.items()}
    steps = [[have[place] for place in step.tolist()] for step in places[group.rank]]
    return rows, [sorted(step, key=lambda row: row.index) for step in steps]


def _sent(places: np.ndarray, sizes: np.ndarray, num_rows: int) -> list[Sent]:
    """Every row that leaves the rank that read it; its place among the group's rows is the message's tag."""
    return [
        Sent(tag=place, sender=place // num_rows, receiver=receiver, size=int(sizes[place]))
        for receiver, of_rank in enumerate(places)
        for place in of_rank.reshape(-1).tolist()
        if place // num_rows != receiver
    ]
