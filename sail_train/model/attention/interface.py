"""transformers' attention "sail_packed": `attend`, behind transformers' signature.

With `packing=` among the keyword arguments of a model, its layers attend within the segments; without it
(generation, plain forward passes) it is transformers' sdpa with the mask given. What a model asks of its attention
beyond that is refused: an attention that leaves out a cap or a sink trains another model than its weights are of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sail_train.model.attention.choice import attend
from sail_train.model.attention.packing import Packing

PACKED_ATTENTION = "sail_packed"

REFUSED = {
    "softcap": "a cap on the scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
}
"""Keyword arguments that neither way of attending heeds."""

REFUSED_PACKED = REFUSED | {
    "position_bias": "a bias by position",
    "indices": "sparse attention",
    "block_indices": "sparse attention",
}
"""Nor packed attention."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: (B, heads, T, head_dim) in, (B, T, heads, head_dim) out."""
    _refuse(module, kwargs, REFUSED if packing is None else REFUSED_PACKED)
    if packing is None:  # the mask has the window in it
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    assert query.shape[0] == 1, "a packed sequence is one row"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, head_dim)
    return attend(q, k, v, packing, scale=scale, dropout=dropout, window=sliding_window)[None], None


def _refuse(module: nn.Module, kwargs: Mapping[str, Any], refused: Mapping[str, str]) -> None:
    for name, meaning in refused.items():
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__} asks its attention for {name} ({meaning}), which this one has not; "
                "use a language model without"
            )


def register() -> None:
    """Make "sail_packed" known to transformers, with sdpa's mask: an attention without one would ignore padding."""
    AttentionInterface.register(PACKED_ATTENTION, _attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)


def no_mask(device: torch.device) -> Tensor:
    """An attention mask for packed passes: transformers builds none when given one of four dimensions."""
    return torch.empty(1, 1, 0, 0, device=device)
