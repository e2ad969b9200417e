"""Patches as they travel: bytes in merge-block order -> normalised values, places, pictures.

Merge-block order: the blocks of merge x merge patches in raster order, the patches inside a block in raster order.
A patch's values are its channels one after the other, each in raster order.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sail_train.model.hf_config import SailVLVisionConfig


def normalise(patches: Tensor, config: SailVLVisionConfig) -> Tensor:
    """(P, patch_dim) float32 of (P, patch_dim) bytes: (byte / 255 - mean) / std of each channel."""
    scale, shift = _normalisation(
        tuple(config.image_mean), tuple(config.image_std), config.patch_size, patches.device
    )  # fmt: skip
    return torch.addcmul(shift, patches.float(), scale)


def patch_positions(rows: int, cols: int, merge: int) -> Tensor:
    """(rows * cols, 2) row and column of each patch, in merge-block order."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"), dim=-1)
    blocks = grid.view(rows // merge, merge, cols // merge, merge, 2)
    return blocks.transpose(1, 2).reshape(rows * cols, 2)


@lru_cache(maxsize=512)
def raster_index(rows: int, cols: int, merge: int, device: torch.device) -> Tensor:
    """(rows * cols,) place in raster order of each patch in merge-block order: `raster[index]` is block order."""
    row, col = patch_positions(rows, cols, merge).unbind(-1)
    return (row * cols + col).to(device)


def pictures(patches: Tensor, rows: int, cols: int, merge: int) -> Tensor:
    """(n, 3, rows * side, cols * side) pixels of (n, rows * cols, 3 * side^2) patches in merge-block order."""
    side = round((patches.shape[-1] // 3) ** 0.5)
    blocks = patches.view(-1, rows // merge, cols // merge, merge, merge, 3, side, side)
    # (n, block row, block column, row in block, column in block, channel, pixel row, pixel column)
    return blocks.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(-1, 3, rows * side, cols * side)


@lru_cache(maxsize=8)
def _normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], side: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(patch_dim,) scale and shift that take bytes to normalised values; not buffers, which bf16 would round."""
    scale = 1 / (255 * torch.tensor(std))
    shift = -torch.tensor(mean) / torch.tensor(std)
    return scale.repeat_interleave(side**2).to(device), shift.repeat_interleave(side**2).to(device)
