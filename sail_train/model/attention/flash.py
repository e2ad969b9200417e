"""flash-attn's variable-length kernel (Dao, arXiv 2307.08691): GPU and half precision; the package is an extra."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from sail_train.model.attention.backend import Backend, kernel_refuses
from sail_train.model.attention.packing import Packing

MAX_HEAD_DIM = 256


def _attend(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, scale: float, dropout: float, window: int | None
) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # the gpu extra

    bounds, longest = packing.cu_seqlens, packing.max_length
    return flash_attn_varlen_func(
        query,
        key,
        value,
        bounds,
        bounds,
        longest,
        longest,
        dropout_p=dropout,
        softmax_scale=scale,
        causal=packing.causal,
        window_size=(-1, -1) if window is None else (window - 1, 0),  # keys to the left and right of the query's own
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _refuses(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed (`pip install --no-build-isolation -e .[gpu]`)"
    if head_dim is not None and head_dim > MAX_HEAD_DIM:
        return f"its kernel takes heads of {MAX_HEAD_DIM} at most, and head_dim is {head_dim}"
    return kernel_refuses(device, dtype)


BACKEND = Backend(
    name="flash", summary="flash-attn's variable-length kernel", attend=_attend, refuses=_refuses, dropout=True
)
