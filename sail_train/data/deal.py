"""Dealing: which rank trains a row, and in which micro step, so that ranks that wait for each other compute alike.

Costs are modelled FLOPs, the vision encoder's and the rest's. `assign` deals the rows of a group of ranks in one of
two ways, by where the ranks wait for each other:

- at every micro step (ZeRO 2 and 3): rows are sorted by cost and cut, so that each micro step has rows that cost alike
  on all ranks; within it the dearest go to the rank that has had the least.
- at the step's end (ZeRO 0 and 1): longest processing time first, each rank getting as many rows as another; then
  pairs of rows are exchanged with the rank that has the most, while that helps.

Either way the set of rows in the step and their number on each rank stay, so that only the order of summation
changes. A rank by itself is a group of one: then only the cut is left.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence

import numpy as np

from sail_train.cost import PARTS, ModelShape
from sail_train.data.ready import ReadyRow

Cost = Callable[[ReadyRow], tuple[float, float]]
"""(of the vision encoder, of the rest) to compute a row."""

SWAPS = 20
"""Most exchanges after dealing."""
CHEAPEST = 8
"""Ranks that the dearest may exchange a row with: those with the least."""
ENOUGH = 1.003
"""Dearest rank / mean from which on it is left at that."""


def tokens_and_patches(row: ReadyRow) -> tuple[float, float]:
    """Relative cost of a row where the model's shapes are unknown: both encoders are linear in their input's length."""
    return float(sum(row.picture_patches)), float(row.num_tokens)


def training_flops(shape: ModelShape, trained: Collection[str] = PARTS) -> Cost:
    """The modelled FLOPs of a row for a model of `shape` whose parts `trained` train."""

    def cost(row: ReadyRow) -> tuple[float, float]:
        parts = shape.train_flops_by_part(
            row.lengths, row.picture_patches, trained=trained, num_trained=row.num_trained
        )
        return parts["vision"], parts["adapter"] + parts["language"]

    return cost


def assign(costs: Sequence[float] | np.ndarray, ranks: int, micro_batch: int, *, per_micro_step: bool) -> np.ndarray:
    """(ranks, micro steps, micro_batch) places of the rows that each rank computes in each of its micro steps.

    Args:
        costs: (N,) of all rows of the group, N a multiple of ranks x micro_batch.
        per_micro_step: whether the ranks wait for each other at every micro step, or at the end of the step.

    The same on every rank that has the same costs. A rank's costliest rows come first: memory runs out in the first
    micro step or never.
    """
    costs = np.asarray(costs, dtype=np.float64)
    order = np.argsort(-costs, kind="stable")
    if per_micro_step or ranks == 1:
        return _cut(order, costs, ranks, micro_batch)
    dealt = _exchanged(_dealt(order, costs, ranks), costs)  # (ranks, A x micro_batch)
    by_cost = np.take_along_axis(dealt, np.argsort(-costs[dealt], axis=1, kind="stable"), axis=1)
    return by_cost.reshape(ranks, -1, micro_batch)


def _cut(order: np.ndarray, costs: np.ndarray, ranks: int, micro_batch: int) -> np.ndarray:
    """Each micro step the next rows of the sorted list; in it the dearest to the rank with the least so far."""
    totals = np.zeros(ranks)
    steps = []
    for chunk in order.reshape(-1, ranks * micro_batch):
        dealt = _exchanged(_dealt(chunk, costs, ranks), costs)  # (ranks, micro_batch)
        dearest_first = np.argsort(-costs[dealt].sum(axis=1), kind="stable")
        step = np.empty_like(dealt)
        step[np.argsort(totals, kind="stable")] = dealt[dearest_first]
        totals += costs[step].sum(axis=1)
        steps.append(step)
    return np.stack(steps, axis=1)


def _dealt(order: np.ndarray, costs: np.ndarray, ranks: int) -> np.ndarray:
    """(ranks, rows each): the next dearest row to the rank with the least so far that may have more."""
    each = len(order) // ranks
    if each == 1:
        return order[:, None]
    heap = [(0.0, rank) for rank in range(ranks)]
    rows: list[list[int]] = [[] for _ in range(ranks)]
    for place, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
        total, rank = heap[0]
        rows[rank].append(place)
        if len(rows[rank]) < each:
            heapq.heapreplace(heap, (total + cost, rank))
        else:
            heapq.heappop(heap)
    return np.array(rows)


def _exchanged(dealt: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The dearest rank exchanges a row with another one, as long as that lowers what the two of them wait for."""
    ranks, each = dealt.shape
    if ranks == 1 or each == 1:
        return dealt
    dealt, values = dealt.copy(), costs[dealt]
    totals = values.sum(axis=1)
    goal = totals.mean() * ENOUGH
    for _ in range(SWAPS):
        most = int(totals.argmax())
        if totals[most] <= goal:
            break
        others = np.argpartition(totals, min(CHEAPEST, ranks) - 1)[:CHEAPEST]
        moved = values[most][:, None, None] - values[others]  # (each, others, each): what a swap takes from the dearest
        after = np.maximum(totals[most] - moved, totals[others][:, None] + moved)
        best = int(after.argmin())
        if after.flat[best] >= totals[most] * (1 - 1e-6):
            break
        mine, place, theirs = np.unravel_index(best, after.shape)
        other = others[place]
        dealt[most, mine], dealt[other, theirs] = dealt[other, theirs], dealt[most, mine]
        values[most, mine], values[other, theirs] = values[other, theirs], values[most, mine]
        totals[[most, other]] = values[[most, other]].sum(axis=1)
    return dealt


def deal(
    rows: Sequence[ReadyRow], micro_batch: int, cost: Cost = tokens_and_patches, *, per_micro_step: bool = True
) -> list[list[ReadyRow]]:
    """One rank's rows, `micro_batch` at a time, the costliest first; those of a micro step by their number."""
    ranked = sorted(rows, key=lambda row: row.index)
    places = assign([sum(cost(row)) for row in ranked], 1, micro_batch, per_micro_step=per_micro_step)[0]
    return [[ranked[place] for place in sorted(step.tolist())] for step in places]
