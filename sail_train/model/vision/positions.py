"""A table of learned positions, and its resampling to pictures of other shapes.

Bicubic, with half-pixel centres and without antialiasing, as DINOv2, BEiT and InternViT, from whose code SAIL-VL
descends, resize theirs: a cubic keeps the slopes that a linear kernel flattens between the entries of the table, and
at the table's own size nothing is computed at all. Neither report nor code of SAIL-VL2's AnyRes names its kernel.

Resampling is linear and separable, so it is written as two matrix products with the kernel's weights: unlike the
backward of `interpolate` on a GPU, which adds in any order, its gradient is the same each time.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sail_train.model.vision import Grids
from sail_train.model.vision.patches import raster_index


class LearnedPositions(nn.Module):
    """A module of its own, so that ZeRO 3 gathers the table where it is read."""

    def __init__(self, side: int, hidden_size: int, merge_size: int, *, base: float = 10_000.0) -> None:
        super().__init__()
        self.side, self.hidden_size, self.merge_size, self.base = side, hidden_size, merge_size, base
        self.table = nn.Parameter(torch.zeros(side * side, hidden_size))  # raster order

    def forward(self, grids: Grids) -> Tensor:
        """(P, hidden_size) positions of all patches, in merge-block order; float32 where resampled."""
        resampled = {grid: self._of(*grid) for grid in dict.fromkeys(grids)}
        return torch.cat([resampled[grid] for grid in grids])

    def sinusoids(self) -> Tensor:
        """(side * side, hidden_size) that the table starts as: in two dimensions (AIMv2's own native variant has them
        for good).

        Normal noise is no start for it: resampled it would be a weaker noise that says nothing of where a patch is.
        """
        quarter = -(-self.hidden_size // 4)
        frequencies = self.base ** -(torch.arange(quarter) / quarter)
        angles = torch.arange(self.side)[:, None] * frequencies  # (side, quarter)
        line = torch.cat((angles.sin(), angles.cos()), dim=1)  # (side, 2 * quarter)
        rows = line[:, None].expand(-1, self.side, -1)
        table = torch.cat((rows, rows.transpose(0, 1)), dim=-1)  # (side, side, 4 * quarter)
        return table.flatten(0, 1)[:, : self.hidden_size]

    def _of(self, rows: int, cols: int) -> Tensor:
        """(rows * cols, hidden_size) in merge-block order."""
        order = raster_index(rows, cols, self.merge_size, self.table.device)
        if (rows, cols) == (self.side, self.side):
            return self.table.index_select(0, order)
        with torch.autocast(self.table.device.type, enabled=False):
            table = self.table.float().unflatten(0, (self.side, self.side))
            down, across = (bicubic_weights(n, self.side, self.table.device) for n in (rows, cols))
            columns = torch.einsum("rg,gsh->rsh", down, table)  # (rows, side, hidden_size)
            resampled = across @ columns  # (rows, cols, hidden_size)
        return resampled.flatten(0, 1).index_select(0, order)


@lru_cache(maxsize=512)
def bicubic_weights(size: int, side: int, device: torch.device) -> Tensor:
    """(size, side): how much of each of `side` entries is in each of `size` places, by torch's bicubic kernel."""
    entries = torch.eye(side)[None, :, :, None]  # (1, side, side, 1): a picture for each entry
    return (
        interpolate(entries, size=(size, 1), mode="bicubic", align_corners=False)[0, :, :, 0].T.contiguous().to(device)
    )
