"""The last step: decoded samples -> the tensors of one micro step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sail_train.data.decode import Decoded
from sail_train.types import IGNORE_INDEX, Batch, Encoded


def batch(samples: Sequence[Decoded], *, patch_dim: int) -> Batch:
    """All samples one after the other, without padding; at least one."""
    assert samples
    encoded = [sample.encoded for sample in samples]
    lengths = [sample.num_tokens for sample in encoded]
    patches = [visual for sample in samples for visual in sample.patches]
    grids = [grid for sample in encoded for grid in sample.grids]
    return Batch(
        input_ids=_int64([sample.input_ids for sample in encoded]),  # (T,)
        labels=_int64([sample.labels for sample in encoded]),  # (T,)
        position_ids=_int64([np.arange(length) for length in lengths]),  # (T,)
        cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),  # (num_samples + 1,)
        patches=torch.from_numpy(np.concatenate([np.zeros((0, patch_dim), np.uint8), *patches])),  # (P, patch_dim)
        grids=torch.tensor(grids, dtype=torch.int64).reshape(-1, 2),  # (num_images, 2)
        sources=tuple(sample.source for sample in encoded),
        keys=tuple(sample.key for sample in encoded),
    )


def placeholder(lost: Encoded, *, token_id: int) -> Decoded:
    """One untrained token, for a micro step that lost all its samples: every rank must still take every step."""
    ids = np.array([token_id], dtype=np.int32)
    labels = np.array([IGNORE_INDEX], dtype=np.int32)
    return Decoded(encoded=Encoded(key="", source=lost.source, input_ids=ids, labels=labels), patches=())


def _int64(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
