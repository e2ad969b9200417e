"""Attention within each segment of a packed sequence, never across: samples for the language model, images for
the vision encoder.

`Packing` is planned once per forward pass: segments of like length stand together as one batch, the shorter ones
padded behind their end. Under causal attention no query sees a key behind itself, so the padding needs no mask
and the result is exact; without causality only segments of equal length share a batch. No mask of the whole
sequence is ever built. With flash-attn installed, half-precision tensors on a GPU take its varlen kernel.

`register` makes this transformers' attention "sail_packed": with `packing=` among the keyword arguments of a
model it attends so, without it (generation, plain forward passes) it is transformers' sdpa with the mask given.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_ATTENTION = "sail_packed"


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the segments of a packed sequence of T tokens are laid out in batches."""

    shapes: tuple[tuple[int, int], ...]
    """(segments, padded length) of each batch."""
    index: Tensor | None
    """(P,) token that stands at each padded position, batch after batch; None if that is 0..T-1."""
    inverse: Tensor | None
    """(T,) padded position of each token; None with `index`."""
    cu_seqlens: Tensor
    """(num_segments + 1,) int32, as flash-attn's varlen kernel wants it."""
    max_length: int
    causal: bool

    @classmethod
    def plan(cls, lengths: Sequence[int], *, causal: bool, device: torch.device) -> Packing:
        """Batches for segments of `lengths`, all above 0."""
        bounds = torch.tensor([0, *lengths]).cumsum(0)  # (num_segments + 1,)
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        batches: list[list[int]] = []
        for i in order:
            longest = lengths[batches[-1][0]] if batches else 0
            slack = 8 + longest // 16 if causal else 0  # measured: less padding costs more calls, more costs work
            if batches and longest - lengths[i] <= slack:
                batches[-1].append(i)
            else:
                batches.append([i])
        shapes = tuple((len(batch), lengths[batch[0]]) for batch in batches)
        # A segment's padding repeats its own last token, so that nothing of another segment enters its batch.
        sizes = torch.tensor([lengths[i] for i in order])
        starts = bounds[torch.tensor(order)]
        padded = torch.tensor([length for count, length in shapes for _ in range(count)])
        within = torch.arange(int(padded.sum())) - (padded.cumsum(0) - padded).repeat_interleave(padded)  # (P,)
        real = within < sizes.repeat_interleave(padded)
        index = starts.repeat_interleave(padded) + torch.minimum(within, (sizes - 1).repeat_interleave(padded))
        inverse = torch.empty(int(bounds[-1]), dtype=torch.long)
        inverse[index[real]] = real.nonzero()[:, 0]
        plain = len(index) == len(inverse) and bool((index == torch.arange(len(index))).all())
        return cls(
            shapes=shapes,
            index=None if plain else index.to(device),
            inverse=None if plain else inverse.to(device),
            cu_seqlens=bounds.to(device, torch.int32),
            max_length=max(lengths),
            causal=causal,
        )

    @classmethod
    def of(cls, cu_seqlens: Tensor) -> Packing:
        """Causal batches for the samples between `cu_seqlens`, (num_samples + 1,)."""
        bounds = cu_seqlens.tolist()
        lengths = [end - start for start, end in zip(bounds, bounds[1:], strict=False) if end > start]
        return cls.plan(lengths, causal=True, device=cu_seqlens.device)


def attend(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, scale: float, dropout: float = 0.0
) -> Tensor:
    """(T, heads, head_dim) of each token attending within its segment; key and value may have fewer heads."""
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and _has_flash_attn():
        return _flash(query, key, value, packing, scale=scale, dropout=dropout)
    if packing.index is not None:
        query, key, value = (x.index_select(0, packing.index) for x in (query, key, value))  # (P, heads, head_dim)
    sizes = [count * length for count, length in packing.shapes]
    gqa = query.shape[1] != key.shape[1]
    outputs = []
    batches = zip(packing.shapes, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
    for shape, *qkv in batches:
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in qkv)  # (segments, heads, length, head_dim)
        out = scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=packing.causal, scale=scale, enable_gqa=gqa
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return output if packing.inverse is None else output.index_select(0, packing.inverse)


@cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _flash(query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, scale: float, dropout: float) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # an extra, for GPUs alone

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
    )


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: (B, heads, T, head_dim) in, (B, T, heads, head_dim) out."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    assert query.shape[0] == 1, "a packed sequence is one row"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(q, k, v, packing, scale=scale, dropout=dropout)[None], None


def register() -> None:
    """Make "sail_packed" known to transformers, with sdpa's mask: an attention without one would ignore padding."""
    AttentionInterface.register(PACKED_ATTENTION, _attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)


def no_mask(device: torch.device) -> Tensor:
    """An attention mask for packed passes: transformers builds none when given one of four dimensions."""
    return torch.empty(1, 1, 0, 0, device=device)
