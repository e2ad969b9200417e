"""Scores, mask, softmax, sum, as the formula has it: the yardstick of the other backends, for tests alone.

It holds (heads, T, T) scores and works in fp32 at least, whatever the tensors' dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from sail_train.model.attention.backend import Backend
from sail_train.model.attention.packing import Packing


def _attend(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, scale: float, dropout: float, window: int | None
) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (x.transpose(0, 1).to(wide) for x in (query, key, value))  # (heads, T, head_dim)
    groups = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    scores = (q @ k.mT * scale).masked_fill(~packing.layout(visible, window), -torch.inf)  # (heads, T, T)
    return (drop(scores.softmax(-1), dropout) @ v).transpose(0, 1).to(query.dtype)


def visible(packing: Packing, window: int | None) -> Tensor:
    """(T, T) True where query (row) sees key (column)."""
    lengths = torch.tensor(packing.lengths, device=packing.device)
    segment = torch.arange(len(lengths), device=packing.device).repeat_interleave(lengths)  # (T,)
    place = torch.arange(len(segment), device=packing.device)
    ahead = place[:, None] - place  # how far the query stands behind the key
    seen = segment[:, None] == segment
    if packing.causal:
        seen = seen & (ahead >= 0)
    return seen if window is None else seen & (ahead < window)


def _refuses(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    return None


BACKEND = Backend(
    name="eager", summary="plain matrix products with a mask of T x T", attend=_attend, refuses=_refuses, dropout=True
)
