"""The last step: ready rows -> the tensors of one micro step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sail_train.data.ready import ReadyRow
from sail_train.types import IGNORE_INDEX, Batch


def batch(rows: Sequence[ReadyRow], *, patch_dim: int, source: str, pad_id: int, pin: bool = False) -> Batch:
    """All samples of the rows one after the other, without padding.

    Rows that hold no sample (all of them failed, or the data is exhausted) make one untrained token `pad_id` of
    `source`, without a key: every rank must still take every step.

    Args:
        pin: whether to put the tensors in page-locked memory, from which a GPU copies while it computes.
    """
    rows = [row for row in rows if row.keys]
    lengths = [length for row in rows for length in row.lengths] or [1]
    grids = [grid for row in rows for grid in row.grids]
    pad, ignored = np.array([pad_id]), np.array([IGNORE_INDEX])
    patches = [row.patches for row in rows] or [np.zeros(0, np.uint8)]
    return Batch(
        input_ids=_joined([row.input_ids for row in rows] or [pad], np.int64, pin),  # (T,)
        labels=_joined([row.labels for row in rows] or [ignored], np.int64, pin),  # (T,)
        position_ids=_joined([np.arange(length) for length in lengths], np.int64, pin),  # (T,)
        cu_seqlens=_joined([np.cumsum([0, *lengths])], np.int32, pin),  # (num_samples + 1,)
        patches=_joined(patches, np.uint8, pin).view(-1, patch_dim),  # (P, patch_dim)
        grids=_joined([np.array(grids, dtype=np.int64).reshape(-1)], np.int64, pin).view(-1, 2),  # (num_images, 2)
        sources=tuple(source for row in rows for source in row.sources) or (source,),
        keys=tuple(key for row in rows for key in row.keys) or ("",),
    )


def _joined(parts: Sequence[np.ndarray], dtype: type[np.generic], pin: bool) -> torch.Tensor:
    size = sum(len(part) for part in parts)
    joined = torch.empty(size, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=pin)
    np.concatenate(parts, out=joined.numpy(), casting="unsafe")
    return joined
