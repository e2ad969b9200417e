"""torch's scaled_dot_product_attention over batches of segments of like length (`batches`): runs everywhere.

On a CPU in fp32 the fastest of all: a block mask over the whole sequence costs 6 times as much (2048 tokens, 8
samples). A sliding window takes a mask of one segment's length squared.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sail_train.model.attention.backend import Backend
from sail_train.model.attention.packing import Packing


def _attend(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, scale: float, dropout: float, window: int | None
) -> Tensor:
    batches = packing.batches
    if batches.index is not None:
        query, key, value = (x.index_select(0, batches.index) for x in (query, key, value))  # (P, heads, head_dim)
    sizes = [count * length for count, length in batches.shapes]
    gqa = query.shape[1] != key.shape[1]
    outputs = []
    for shape, *qkv in zip(batches.shapes, query.split(sizes), key.split(sizes), value.split(sizes), strict=True):
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in qkv)  # (segments, heads, length, head_dim)
        band = packing.layout(_band, shape[1], window) if window is not None and window < shape[1] else None
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=band, dropout_p=dropout, is_causal=packing.causal and band is None, scale=scale,
            enable_gqa=gqa,
        )  # fmt: skip
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return output if batches.inverse is None else output.index_select(0, batches.inverse)


def _band(packing: Packing, length: int, window: int) -> Tensor:
    """(length, length) True where a query sees a key: itself and the `window` - 1 before it."""
    ones = torch.ones(length, length, dtype=torch.bool, device=packing.device)
    return ones.tril().triu(1 - window)


def _refuses(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    return None


BACKEND = Backend(
    name="sdpa",
    summary="torch's own attention, segments of like length in one batch",
    attend=_attend,
    refuses=_refuses,
    dropout=True,
)
