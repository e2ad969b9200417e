"""torch's FlexAttention (Dong et al., arXiv 2412.05496) with a mask of blocks of 128 x 128, most of them empty.

The block mask is made from the segments' bounds, never from a (T, T) mask, and kept with the packing. Compiled on
a GPU, where the uncompiled form would hold all scores; as it is on a CPU, where torch has no backward for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sail_train.model.attention.backend import Backend
from sail_train.model.attention.packing import Packing

BLOCK = 128
MIN_HEAD_DIM = 16
"""Of the Triton kernel."""


def _attend(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, scale: float, dropout: float, window: int | None
) -> Tensor:
    if query.device.type == "cpu":
        if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
            raise ValueError(
                "attention=flex cannot train on a CPU, where torch has no backward for FlexAttention; "
                "use attention=sdpa, or torch.no_grad() for a forward alone"
            )
        query, key, value = query.detach(), key.detach(), value.detach()
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))  # (1, heads, T, head_dim)
    gqa = query.shape[1] != key.shape[1]
    mask = packing.layout(block_mask, window)
    out = _kernel(compiled=query.is_cuda)(q, k, v, block_mask=mask, scale=scale, enable_gqa=gqa)
    return out[0].transpose(0, 1)


@cache
def _kernel(*, compiled: bool) -> Callable[..., Any]:
    kernel = cast(Callable[..., Any], flex_attention)
    return torch.compile(kernel) if compiled else kernel


def block_mask(packing: Packing, window: int | None) -> BlockMask:
    """Blocks in which some pairs see each other, and those in which all do."""
    lengths = torch.tensor(packing.lengths)
    segment = torch.arange(len(lengths)).repeat_interleave(lengths)  # (T,)
    some, all_ = _blocks(segment, causal=packing.causal, window=window)
    partly_count, partly = _ordered(some & ~all_)
    fully_count, fully = _ordered(all_)
    on = packing.device
    return BlockMask.from_kv_blocks(
        partly_count.to(on), partly.to(on), fully_count.to(on), fully.to(on), BLOCK_SIZE=BLOCK,
        mask_mod=_mask_mod(segment.to(on), packing.causal, window), seq_lengths=(len(segment), len(segment)),
    )  # fmt: skip


def _blocks(segment: Tensor, *, causal: bool, window: int | None) -> tuple[Tensor, Tensor]:
    """(blocks, blocks) each: whether any pair, and whether every pair, of a block of queries and one of keys is seen.

    Segments are numbered in order, so of a block of keys before a block of queries the nearest pair (last key,
    first query) decides about any, and the first and last of both about every.
    """
    total = len(segment)
    starts = torch.arange(0, total, BLOCK)
    ends = (starts + BLOCK).clamp(max=total) - 1
    first, last = segment[starts], segment[ends]  # (blocks,)
    some = (first[:, None] <= last) & (first <= last[:, None])
    whole = (starts + BLOCK <= total) & (first == last)  # a cut block counts as no whole one
    every = whole[:, None] & whole & (first[:, None] == first)
    if causal:
        some, every = some.tril(), every.tril(-1)
    if window is not None:
        some = some & (starts[:, None] - ends < window)
        every = every & (ends[:, None] - starts < window)
    return some, every


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 1, blocks) number and (1, 1, blocks, blocks) indices of the True ones in each row, these first."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def _mask_mod(segment: Tensor, causal: bool, window: int | None) -> Callable[..., Tensor]:
    # a tensor: torch's compiler takes no captured number that changes
    reach = torch.tensor(len(segment) if window is None else window, device=segment.device)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = segment[query] == segment[key]
        return same & (query >= key) & (query - key < reach) if causal else same

    return seen


def _refuses(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"it runs on cpu and cuda, and the tensors are on {device.type}"
    if device.type == "cuda" and head_dim is not None and head_dim < MIN_HEAD_DIM:
        return f"its kernel takes heads of {MIN_HEAD_DIM} at least, and head_dim is {head_dim}"
    return None


BACKEND = Backend(
    name="flex", summary="torch's FlexAttention with a block mask", attend=_attend, refuses=_refuses, dropout=False
)
