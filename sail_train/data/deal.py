"""Dealing: the rows of one step -> micro batches of like cost on every rank.

Each rank keeps its own rows, so that nothing is exchanged: it sorts them by cost and cuts the sorted list, and the
n-th micro batch is then about equally costly on all ranks, which under ZeRO 2 and 3 wait for each other at each.
Swapping rows between ranks would balance whole steps as well; it is left out, because a rank would have to read
rows that others train.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from sail_train.cost import PARTS, ModelShape
from sail_train.types import Row

AnyRow = TypeVar("AnyRow", bound=Row)

Cost = Callable[[Row], float]


def tokens_and_patches(row: Row) -> float:
    """Relative cost of a row where the model's shapes are unknown: both encoders are linear in their input's length."""
    return sum(sample.num_tokens + sample.num_patches for sample in row.samples)


def training_flops(shape: ModelShape, trained: Collection[str] = PARTS) -> Cost:
    """The modelled FLOPs of a row for a model of `shape` whose parts `trained` train."""

    def cost(row: Row) -> float:
        lengths = [sample.num_tokens for sample in row.samples]
        patches = [rows * cols for sample in row.samples for rows, cols in sample.grids]
        num_trained = sum(sample.num_trained for sample in row.samples)
        return shape.train_flops(lengths, patches, trained=trained, num_trained=num_trained)

    return cost


def deal(rows: Sequence[AnyRow], micro_batch: int, cost: Cost = tokens_and_patches) -> list[list[AnyRow]]:
    """All rows, `micro_batch` at a time, the costliest first: memory runs out in the first micro step or never."""
    ranked = sorted(rows, key=lambda row: (-cost(row), row.index))
    groups = [ranked[start : start + micro_batch] for start in range(0, len(ranked), micro_batch)]
    return [sorted(group, key=lambda row: row.index) for group in groups]
