"""Behind transformers' signature, and inside transformers' models."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, MistralConfig, MistralForCausalLM

from sail_train.model.attention import PACKED_ATTENTION, Packing, attend, no_mask, register

register()

Plan = Callable[..., Packing]


def call(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
    module = types.SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1], is_causal=True)
    return AttentionInterface()[PACKED_ATTENTION](module, query, key, value, **{"attention_mask": None, **kwargs})[0]


def rows(*packed: Tensor) -> list[Tensor]:
    """(T, heads, head_dim) -> (1, heads, T, head_dim)."""
    return [x.transpose(0, 1)[None] for x in packed]


def test_without_packing_it_is_transformers_sdpa_with_the_mask() -> None:
    query, key = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8)
    mask = torch.tensor([[True, True, False], [True, True, True], [False, True, True]]).expand(2, 1, 3, 3)
    repeated = key.repeat_interleave(2, 1)
    expected = scaled_dot_product_attention(query, repeated, repeated, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(call(query, key, key, attention_mask=mask, scaling=0.3), expected.transpose(1, 2))


@pytest.mark.parametrize("window", [None, 2])
def test_with_packing_it_attends_within_segments_and_the_window(
    make_packed: Callable[..., list[Tensor]], plan: Plan, window: int | None
) -> None:
    packed, packing = make_packed([3, 5]), plan([3, 5])
    output = call(*rows(*packed), packing=packing, scaling=0.3, sliding_window=window)
    assert torch.equal(output[0], attend(*packed, packing, scale=0.3, window=window))


def test_the_scale_is_that_of_the_head_unless_it_is_given(make_packed: Callable[..., list[Tensor]], plan: Plan) -> None:
    packed, packing = make_packed([3, 5]), plan([3, 5])
    assert torch.equal(call(*rows(*packed), packing=packing)[0], attend(*packed, packing, scale=8**-0.5))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["softcap", "s_aux", "sinks"])
def test_what_no_backend_computes_is_refused(
    make_packed: Callable[..., list[Tensor]], plan: Plan, name: str, packed: bool
) -> None:
    packing = plan([4]) if packed else None
    with pytest.raises(ValueError, match=f"asks its attention for {name} .*use a language model without"):
        call(*rows(*make_packed([4])), packing=packing, **{name: torch.ones(4)})
    call(*rows(*make_packed([4])), packing=packing, **{name: None})


@pytest.mark.parametrize("name", ["position_bias", "indices", "block_indices"])
def test_what_packed_attention_does_not_compute_is_refused(
    make_packed: Callable[..., list[Tensor]], plan: Plan, name: str
) -> None:
    with pytest.raises(ValueError, match=f"asks its attention for {name}"):
        call(*rows(*make_packed([4])), packing=plan([4]), **{name: torch.zeros(1, 4, 4, 4)})


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [4, None])
def test_a_model_with_a_sliding_window_packs_as_it_runs_alone(backend: str, window: int | None) -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=window, initializer_range=0.3,
    )  # fmt: skip
    config._attn_implementation = PACKED_ATTENTION
    model = MistralForCausalLM(config).eval().model
    samples = [torch.randint(0, 50, (length,)) for length in (3, 11, 7)]
    bounds = torch.tensor([0, 3, 14, 21])
    with torch.no_grad():
        # without packing the window is in transformers' mask
        alone = torch.cat([model(input_ids=ids[None], use_cache=False).last_hidden_state[0] for ids in samples])
        packed = model(
            input_ids=torch.cat(samples)[None],
            attention_mask=no_mask(bounds.device),
            position_ids=torch.cat([torch.arange(len(ids)) for ids in samples])[None],
            use_cache=False,
            packing=Packing.of(bounds, backend=backend),
        ).last_hidden_state[0]
    # fp32 in another order through two layers and a norm
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
