"""What objectives have in common: their bounds, their result, and the clipped surrogate of PPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut here before exp, as in verl: beyond it the clip decides anyway, and exp would overflow."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Bounds of the ratio."""

    low: float
    high: float
    c: float = 0.0
    """Dual clip; 0 is none."""
    loss_agg_mode: str = "token-mean"


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    values: Tensor
    """(N,) with gradient."""
    ratio: Tensor
    """(N,) detached, new over old probability."""
    clipped: Tensor
    """(N,) bool: the bound took the token's gradient or capped its weight."""


def log_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """(N,) log of new over old probability."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip: Clip) -> TokenLoss:
    """max(-A r, -A clip(r)), and with a dual clip no more than -A c where A < 0 (verl's "vanilla" loss)."""
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip.low, 1 + clip.high)
    values, clipped = torch.maximum(free, bounded), bounded > free
    if clip.c > 0:
        cap = -advantages * clip.c
        capped = (advantages < 0) & (values > cap)
        values, clipped = torch.where(capped, cap, values), clipped | capped
    return TokenLoss(values=values, ratio=ratio.detach(), clipped=clipped)
