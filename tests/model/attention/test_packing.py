"""Where segments are, and how they stand in batches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sail_train.model.attention import Packing, attend

Plan = Callable[..., Packing]


def test_batches_hold_each_token_once_and_little_padding(plan: Plan) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 70, (50,), generator=generator).tolist()
    packing = plan(lengths)
    assert packing.index is not None and packing.inverse is not None
    assert torch.equal(packing.index[packing.inverse], torch.arange(sum(lengths)))
    assert len(packing.index) < 1.2 * sum(lengths) and len(packing.shapes) < 10
    assert packing.max_length == max(lengths)
    assert packing.cu_seqlens.tolist() == [0, *torch.tensor(lengths).cumsum(0).tolist()]


def test_padding_repeats_the_segments_own_last_token(plan: Plan) -> None:
    packing = plan([5, 3])
    assert packing.shapes == ((2, 5),) and packing.index is not None
    assert packing.index.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]


def test_without_causality_only_equal_segments_share_a_batch(plan: Plan) -> None:
    assert plan([4, 5, 4], causal=False).shapes == ((1, 5), (2, 4))


def test_equal_segments_are_not_copied(plan: Plan) -> None:
    packing = plan([6, 6, 6])
    assert packing.index is None and packing.inverse is None


def test_empty_samples_between_bounds_are_skipped() -> None:
    packing = Packing.of(torch.tensor([0, 3, 3, 7], dtype=torch.int32), backend="eager")
    assert packing.cu_seqlens.tolist() == [0, 3, 7] and packing.cu_seqlens.dtype == torch.int32
    assert packing.lengths == (3, 4) and packing.causal and packing.backend == "eager"


def test_a_layout_is_built_once_for_all_layers(plan: Plan) -> None:
    calls = []

    def build(packing: Packing, window: int | None) -> int:
        calls.append(window)
        return len(calls)

    packing = plan([2, 3])
    assert [packing.layout(build, 4), packing.layout(build, None), packing.layout(build, 4)] == [1, 2, 1]
    assert calls == [4, None]


def test_nothing_is_laid_out_that_the_backend_does_not_ask_for(plan: Plan) -> None:
    packing = plan([4, 9], backend="eager")
    attend(*[torch.randn(13, 2, 8)] * 3, packing, scale=1.0)
    (key,) = packing.layouts
    assert key[0].__name__ == "visible"
