from __future__ import annotations

import sys
import types

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from sail_train.model.attention import PACKED_ATTENTION, Packing, attend

LENGTHS = [[1], [5], [3, 3, 3], [1, 40, 2, 17, 17, 3], [9, 1, 30, 29, 60, 8], [200, 64, 190, 7]]


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], causal: bool):
    """Each segment by itself, in float64."""
    repeat = query.shape[1] // key.shape[1]
    outputs = []
    for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        outputs.append(scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_and_its_gradients_equal_each_segment_alone(lengths: list[int], kv_heads: int, causal: bool) -> None:
    torch.manual_seed(0)
    total = sum(lengths)
    query = torch.randn(total, 4, 8, requires_grad=True)
    key, value = (torch.randn(total, kv_heads, 8, requires_grad=True) for _ in range(2))
    upstream = torch.randn(total, 4, 8)
    packing = Packing.plan(lengths, causal=causal, device=query.device)
    output = attend(query, key, value, packing, scale=0.3)
    expected = reference(query, key, value, lengths, causal)
    # fp32 against fp64 over at most 200 keys: a few ulp of values of order one
    torch.testing.assert_close(output.double(), expected, atol=2e-6, rtol=1e-5)
    grads = torch.autograd.grad(output, (query, key, value), upstream)
    for grad, exact in zip(grads, torch.autograd.grad(expected, (query, key, value), upstream.double()), strict=True):
        torch.testing.assert_close(grad, exact, atol=5e-6, rtol=1e-5)


def test_batches_hold_each_token_once_and_little_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 70, (50,), generator=generator).tolist()
    packing = Packing.plan(lengths, causal=True, device=torch.device("cpu"))
    assert packing.index is not None and packing.inverse is not None
    assert torch.equal(packing.index[packing.inverse], torch.arange(sum(lengths)))
    assert len(packing.index) < 1.2 * sum(lengths) and len(packing.shapes) < 10
    assert packing.max_length == max(lengths)
    assert packing.cu_seqlens.tolist() == [0, *torch.tensor(lengths).cumsum(0).tolist()]


def test_padding_repeats_the_segments_own_last_token() -> None:
    packing = Packing.plan([5, 3], causal=True, device=torch.device("cpu"))
    assert packing.shapes == ((2, 5),) and packing.index is not None
    assert packing.index.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]


def test_without_causality_only_equal_segments_share_a_batch() -> None:
    packing = Packing.plan([4, 5, 4], causal=False, device=torch.device("cpu"))
    assert packing.shapes == ((1, 5), (2, 4))


def test_equal_segments_are_not_copied() -> None:
    packing = Packing.plan([6, 6, 6], causal=True, device=torch.device("cpu"))
    assert packing.index is None and packing.inverse is None


def test_empty_samples_between_bounds_are_skipped() -> None:
    packing = Packing.of(torch.tensor([0, 3, 3, 7], dtype=torch.int32))
    assert packing.cu_seqlens.tolist() == [0, 3, 7]


def test_nothing_of_another_segment_enters_even_if_it_is_not_a_number() -> None:
    lengths = [5, 3, 9]
    query = torch.randn(17, 2, 8)
    query[5:8] = float("nan")
    output = attend(query, query, query, Packing.plan(lengths, causal=True, device=query.device), scale=1.0)
    assert output[:5].isfinite().all() and output[8:].isfinite().all() and output[5:8].isnan().all()


def test_without_packing_it_is_transformers_sdpa_with_the_mask() -> None:
    attention = AttentionInterface()[PACKED_ATTENTION]
    query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8)
    mask = torch.tensor([[True, True, False], [True, True, True], [False, True, True]]).expand(2, 1, 3, 3)
    module = types.SimpleNamespace(num_key_value_groups=2, is_causal=True)
    output, _ = attention(module, query, key, key, mask, scaling=0.3)
    repeated = key.repeat_interleave(2, 1)
    expected = scaled_dot_product_attention(query, repeated, repeated, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_flash_attention_gets_the_bounds_of_the_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    from sail_train.model import attention

    calls = []
    fake = types.ModuleType("flash_attn")
    fake.flash_attn_varlen_func = lambda *args, **kwargs: calls.append((args, kwargs))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    packing = Packing.plan([2, 5], causal=True, device=torch.device("cpu"))
    query = torch.randn(7, 2, 8)
    attention._flash(query, query, query, packing, scale=0.5, dropout=0.0)
    (args, kwargs), = calls
    assert args[3].tolist() == args[4].tolist() == [0, 2, 7] and args[3].dtype == torch.int32
    assert args[5:] == (5, 5) and kwargs == {"dropout_p": 0.0, "softmax_scale": 0.5, "causal": True}
