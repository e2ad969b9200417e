"""The block mask, made from bounds, against the one that torch makes from the whole mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from sail_train.model.attention import Packing
from sail_train.model.attention.eager import visible
from sail_train.model.attention.flex import block_mask

SHAPES = [[1], [128], [300], [128, 128], [127, 129, 1], [500, 3, 3, 3, 200, 130], [5] * 60, [256, 256, 700]]


@pytest.mark.parametrize(
    ("causal", "window"), [(True, None), (False, None), (True, 1), (True, 100), (True, 128), (True, 129), (True, 300)]
)
@pytest.mark.parametrize("lengths", SHAPES)
def test_the_blocks_are_those_of_the_whole_mask(
    plan: Callable[..., Packing], lengths: list[int], causal: bool, window: int | None
) -> None:
    packing, total = plan(lengths, causal=causal), sum(lengths)
    seen = visible(packing, window)
    expected = create_block_mask(lambda b, h, q, k: seen[q, k], None, None, total, total, device="cpu")
    mask = block_mask(packing, window)
    assert mask.shape == expected.shape and mask.BLOCK_SIZE == expected.BLOCK_SIZE
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(mask, name), getattr(expected, name)), name
    for count, indices in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
        for row, number in enumerate(getattr(expected, count)[0, 0].tolist()):
            ours, theirs = (getattr(each, indices)[0, 0, row, :number] for each in (mask, expected))
            assert torch.equal(ours, theirs), (indices, row)
    place = torch.arange(total)
    assert torch.equal(mask.mask_mod(torch.tensor(0), torch.tensor(0), place[:, None], place), seen)


def test_no_tensor_of_the_whole_square_is_built(plan: Callable[..., Packing]) -> None:
    packing, biggest = plan([3000, 1000, 96]), 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            nonlocal biggest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                biggest = max(biggest, out.numel())
            return out

    with Watch():
        block_mask(packing, None)
    assert 4096 <= biggest <= 2 * 4096, "per token, or per pair of blocks (32 x 33)"
