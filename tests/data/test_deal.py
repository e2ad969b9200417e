"""Dealing of rows to ranks and micro steps: what stays, how even it gets, and how long it takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import pytest

from sail_train.cost import ModelShape, Tower
from sail_train.data.config import DataConfig
from sail_train.data.deal import assign, deal, tokens_and_patches, training_flops
from sail_train.data.fill import pack_lengths
from sail_train.data.ready import ReadyRow

SHAPE = ModelShape(
    vision=Tower(
        layers=24, hidden=1024, intermediate=4096, heads=16, kv_heads=16, head_dim=64, causal=False, gated=False
    ),
    patch_dim=588,
    merge=4,
    adapter_hidden=2048,
    language=Tower(layers=28, hidden=2048, intermediate=6144, heads=16, kv_heads=8, head_dim=128, causal=True),
    vocab=151936,
    tied=True,
)
"""SAIL-VL2-2B's, about."""


def row(index: int, lengths: Sequence[int], grids: Sequence[tuple[int, int]] = ()) -> ReadyRow:
    names = ("",) * len(lengths)
    return ReadyRow(
        index=index, keys=names, sources=names, shards=names, lengths=tuple(lengths), grids=tuple(grids),
        num_trained=sum(lengths), buffer=np.zeros(0, np.uint8),
    )  # fmt: skip


def native(rng: np.random.Generator) -> tuple[int, list[int]]:
    """Tokens of a sample, and patches of its images: text, one image of 448 px, native resolution, documents."""
    kind = rng.random()
    if kind < 0.15:
        return int(rng.integers(50, 800)), []
    if kind < 0.5:
        return 256 + int(rng.integers(20, 200)), [1024]
    if kind < 0.8:
        seen = int(rng.integers(200, 1600))
        return seen + int(rng.integers(20, 300)), [4 * seen]
    return int(rng.integers(800, 5000) if kind < 0.95 else rng.integers(2000, 8192)), []


def tiles(rng: np.random.Generator) -> tuple[int, list[int]]:
    """The same of images cut into tiles of 448 px, with 20% text alone."""
    if rng.random() < 0.2:
        return int(np.clip(rng.lognormal(6, 1), 30, 8000)), []
    count = int(rng.integers(2, 13))
    return count * 256 + int(rng.integers(20, 400)), [1024] * count


def costs_of(kind: object, *, seed: int, samples: int = 12000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = [kind(rng) for _ in range(samples)]  # type: ignore[operator]
    lengths, images = [tokens for tokens, _ in drawn], [of_images for _, of_images in drawn]
    config = DataConfig(seq_length=8192, max_patches=40000, pack_buffer=64)
    rows = pack_lengths(lengths, [sum(of_images) for of_images in images], config)
    return np.array(
        [SHAPE.train_flops([lengths[n] for n in row], [patches for n in row for patches in images[n]]) for row in rows]
    )


def evenness(waited: np.ndarray) -> float:
    """Mean / max over ranks of (ranks, synchronisations) costs."""
    return float(waited.mean(axis=0).sum() / waited.max(axis=0).sum())


# one rank


def test_dealing_keeps_all_rows_and_puts_the_costliest_together() -> None:
    rows = [row(index, [tokens]) for index, tokens in enumerate([5, 90, 7, 80, 6, 85])]
    assert [[one.index for one in group] for group in deal(rows, 2)] == [[1, 5], [2, 3], [0, 4]]
    assert deal(rows[::-1], 6) == [rows]
    by_number = deal(rows, 3, cost=lambda row: (0.0, -row.index))
    assert [[one.index for one in group] for group in by_number] == [[0, 1, 2], [3, 4, 5]]


def test_modelled_flops_see_what_token_counts_do_not() -> None:
    cost = training_flops(SHAPE)
    long, short, seen = row(0, [4000]), row(1, [1000] * 4), row(2, [4000], [(32, 32)] * 3)
    assert tokens_and_patches(long) == tokens_and_patches(short) == (0.0, 4000.0)
    assert sum(cost(long)) > sum(cost(short)) and cost(long)[0] == 0
    assert cost(seen)[0] > 0 and cost(seen)[1] > cost(long)[1], "the adapter counts as the rest"
    assert sum(cost(seen)) == SHAPE.train_flops([4000], [1024] * 3, num_trained=4000)
    assert training_flops(SHAPE, ["adapter"])(seen)[0] < cost(seen)[0]


# groups


@pytest.mark.parametrize("per_micro_step", [True, False])
@pytest.mark.parametrize(("ranks", "steps", "micro_batch"), [(1, 3, 2), (2, 1, 1), (4, 4, 1), (3, 2, 5)])
def test_every_row_is_dealt_once_and_every_rank_gets_as_many(
    ranks: int, steps: int, micro_batch: int, per_micro_step: bool
) -> None:
    costs = np.random.default_rng(0).integers(1, 9, ranks * steps * micro_batch).astype(float)
    dealt = assign(costs, ranks, micro_batch, per_micro_step=per_micro_step)
    assert dealt.shape == (ranks, steps, micro_batch)
    assert sorted(dealt.reshape(-1).tolist()) == list(range(len(costs)))
    assert (dealt == assign(costs.tolist(), ranks, micro_batch, per_micro_step=per_micro_step)).all()


@pytest.mark.parametrize("per_micro_step", [True, False])
def test_the_costliest_rows_come_in_the_first_micro_step(per_micro_step: bool) -> None:
    costs = np.random.default_rng(1).random(32)
    dealt = costs[assign(costs, 4, 2, per_micro_step=per_micro_step)]
    assert (np.diff(dealt.max(axis=2), axis=1) <= 0).all()


def test_rows_that_all_cost_nothing_are_dealt_too() -> None:
    assert sorted(assign([0.0] * 8, 2, 2, per_micro_step=False).reshape(-1).tolist()) == list(range(8))


@pytest.mark.parametrize(("kind", "wanted"), [(native, 0.97), (tiles, 0.98)])
def test_ranks_wait_little_for_each_other(kind: object, wanted: float) -> None:
    """64 ranks, 4 micro steps; undealt the same rows make ranks wait for 15% of the time, or 4%."""
    costs = costs_of(kind, seed=0)
    steps = [costs[first : first + 256] for first in range(0, len(costs) - 255, 256)]
    assert len(steps) >= 5
    of_steps, of_micro_steps, undealt = [], [], []
    for step in steps:
        of_steps.append(evenness(step[assign(step, 64, 1, per_micro_step=False)].sum(axis=(1, 2))[:, None]))
        of_micro_steps.append(evenness(step[assign(step, 64, 1, per_micro_step=True)].sum(axis=2)))
        undealt.append((evenness(step.reshape(64, 4).sum(axis=1)[:, None]), evenness(step.reshape(64, 4))))
    assert statistics.mean(of_steps) >= wanted and min(of_steps) > max(plain for plain, _ in undealt)
    assert statistics.mean(of_micro_steps) > statistics.mean(plain for _, plain in undealt) + 0.02


def test_dealing_256_rows_to_64_ranks_takes_no_more_than_a_millisecond() -> None:
    costs = costs_of(native, seed=1, samples=2500)[:256]
    assert len(costs) == 256
    for per_micro_step in (True, False):
        times = []
        for _ in range(30):
            started = time.perf_counter()
            assign(costs, 64, 1, per_micro_step=per_micro_step)
            times.append(time.perf_counter() - started)
        assert min(times) < 1e-3  # the least of some: a busy machine is not what is measured
