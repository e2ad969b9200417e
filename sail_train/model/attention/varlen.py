"""torch's own variable-length attention: flash attention 2 as torch builds it, nothing to install; GPU alone.

torch 2.11 takes a window but no word on grouped heads, so that keys and values are repeated there; from 2.12 on
`enable_gqa` does without. No dropout in any version.
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sail_train.model.attention.backend import Backend, kernel_refuses
from sail_train.model.attention.packing import Packing

MAX_HEAD_DIM, HEAD_DIM_UNIT = 256, 8
"""What torch's kernel takes; flash-attn pads a head_dim that is no multiple, torch's varlen_attn does not."""


def _attend(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, scale: float, dropout: float, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # not in every torch; `_refuses` looks first

    options: dict[str, Any] = {}
    if (groups := query.shape[1] // key.shape[1]) > 1:
        if _knows_groups():
            options["enable_gqa"] = True
        else:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    left = -1 if window is None else window - 1  # keys before the query's own
    bounds, longest = packing.cu_seqlens, packing.max_length
    output = varlen_attn(
        query, key, value, bounds, bounds, longest, longest, scale=scale,
        window_size=(left, 0) if packing.causal else (-1, -1), **options,
    )  # fmt: skip
    assert isinstance(output, Tensor), "auxiliary outputs were not asked for"
    return output


@cache
def _knows_groups() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _refuses(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    if head_dim is not None and (head_dim % HEAD_DIM_UNIT or head_dim > MAX_HEAD_DIM):
        return f"its kernel takes multiples of {HEAD_DIM_UNIT} up to {MAX_HEAD_DIM}, and head_dim is {head_dim}"
    return kernel_refuses(device, dtype)


BACKEND = Backend(
    name="varlen", summary="torch's variable-length kernel", attend=_attend, refuses=_refuses, dropout=False
)
