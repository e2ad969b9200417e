"""Two-dimensional rotary embedding: half of each head's pairs turn by the patch's row, half by its column.

No learned positions, so no largest size: what a query and a key have in common depends on their distance alone.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sail_train.model.vision import Grids
from sail_train.model.vision.patches import patch_positions


def rotate(x: Tensor, tables: Tensor) -> Tensor:
    """Rotary embedding of (P, heads, head_dim): the pair (i, i + head_dim / 2) turns by its table's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * tables[0] + torch.cat((-second, first), dim=-1) * tables[1]


@lru_cache(maxsize=16)
def rope_tables(grids: Grids, merge: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """(2, P, head_dim) cosines and sines of all pictures; the last grid sets are kept, since batches repeat them."""
    return torch.cat([rope_table(rows, cols, merge, head_dim, theta, device) for rows, cols in grids], dim=1)


@lru_cache(maxsize=512)
def rope_table(rows: int, cols: int, merge: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """(2, rows * cols, head_dim) cosines and sines of one picture."""
    frequencies = theta ** -(torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))  # (head_dim / 4,)
    angles = patch_positions(rows, cols, merge).float()[:, :, None] * frequencies  # (P, 2, head_dim / 4)
    angles = angles.flatten(1).repeat(1, 2)  # (P, head_dim): rows, columns, rows, columns
    return torch.stack((angles.cos(), angles.sin())).to(device)
