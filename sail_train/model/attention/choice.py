"""The table of backends, which of them runs here, and `attend`, which runs it.

"auto" takes the first of `AUTO` that can run. flash-attn first: whoever built it wants it, and it is the only
kernel with dropout. Then torch's own variable-length kernel: the same algorithm, nothing to install. Both read the
packed tensors as they are, so each layer saves the gathers into batches and back. sdpa runs everywhere, in every
precision, forwards and backwards, and is the fastest on a CPU. flex is left out of "auto": it compiles for seconds
at its first call and again for new shapes, has no backward on a CPU, and nothing measured speaks for it; nor is
eager there, which holds all scores.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from sail_train.model.attention import eager, flash, flex, sdpa, varlen
from sail_train.model.attention.backend import Backend
from sail_train.model.attention.packing import Packing

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (flash.BACKEND, varlen.BACKEND, flex.BACKEND, sdpa.BACKEND, eager.BACKEND)
}

AUTO = ("flash", "varlen", "sdpa")
"""In the order in which "auto" tries them."""


@cache
def choose(name: str, device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> Backend:
    """The backend that `name` means for tensors of `dtype` on `device`.

    `head_dim` is that of the tensors; without it nothing is refused for its sake. ValueError if the name is unknown
    or its backend cannot run there.
    """
    if name == "auto":
        return next(BACKENDS[each] for each in AUTO if not BACKENDS[each].refuses(device, dtype, head_dim))
    if name not in BACKENDS:
        raise ValueError(f"attention={name!r} must be one of auto, {', '.join(BACKENDS)}")
    if reason := BACKENDS[name].refuses(device, dtype, head_dim):
        able = ", ".join(_able(device, dtype, head_dim))
        raise ValueError(f"attention={name} cannot run here: {reason}; use auto or one of {able}")
    return BACKENDS[name]


def _able(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> list[str]:
    return [name for name, backend in BACKENDS.items() if not backend.refuses(device, dtype, head_dim)]


def describe(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """One line for the log: what attends here, and why nothing that "auto" would rather have had."""
    chosen = choose(name, device, dtype)
    line = f"attention={chosen.name}: {chosen.summary}"
    if name != "auto":
        return line
    passed = AUTO[: AUTO.index(chosen.name)]
    return line + "".join(f"; not {each}: {BACKENDS[each].refuses(device, dtype, None)}" for each in passed)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    scale: float,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """(T, heads, head_dim) of each token attending within its segment.

    Args:
        query: (T, heads, head_dim).
        key: (T, kv_heads, head_dim), kv_heads a divisor of heads.
        value: like `key`.
        packing: the segments, whether attention is causal, and the backend.
        scale: of the scores, before the softmax.
        dropout: probability at which an attention probability is dropped.
        window: causal only: keys that a query sees at most, its own position's included; None: all before it.

    ValueError if the backend cannot run on these tensors, or has no dropout; or for a window without causality that
    is shorter than a segment.
    """
    backend = choose(packing.backend, query.device, query.dtype, query.shape[-1])
    if dropout and not backend.dropout:
        able = ", ".join(each for each in _able(query.device, query.dtype, query.shape[-1]) if BACKENDS[each].dropout)
        raise ValueError(
            f"attention={backend.name} has no dropout, which is {dropout}; set that to 0 or use one of {able}"
        )
    if window is not None and window >= packing.max_length:
        window = None
    if window is not None and not packing.causal:
        raise ValueError(
            f"a sliding window of {window} over segments of up to {packing.max_length} without causality is not "
            "supported; use a model that attends to all of an image"
        )
    return backend.attend(query, key, value, packing, scale=scale, dropout=dropout, window=window)
