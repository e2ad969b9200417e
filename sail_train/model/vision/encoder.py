"""What our own encoders have in common: bytes -> embedded patches -> layers over all pictures at once -> features.

Pictures of any number and size share one sequence and attend each within itself. Those with equally many patches are
put side by side once here, so that no layer has to gather them into batches. Of the layers only those up to
`select_layer` are built: what stands behind it would never get a gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sail_train.model.attention import Packing
from sail_train.model.hf_config import SailVLVisionConfig
from sail_train.model.vision import Grids
from sail_train.model.vision.layer import EncoderLayer, make_norm
from sail_train.model.vision.patches import normalise


class PackedEncoder(nn.Module, ABC):
    def __init__(self, config: SailVLVisionConfig, merge_size: int, *, attention: str = "auto") -> None:
        super().__init__()
        self.config, self.merge_size, self.attention = config, merge_size, attention
        self.blank_grid = (merge_size, merge_size)
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.depth))
        normed = config.final_norm and config.select_layer == -1
        self.norm = make_norm(config) if normed else nn.Identity()

    def forward(self, patches: Tensor, grids: Grids) -> Tensor:
        """(P, hidden_size) features of (P, patch_dim) uint8 patches."""
        order = sorted(range(len(grids)), key=lambda i: -grids[i][0] * grids[i][1])
        if order == list(range(len(grids))):
            return self._features(patches, grids)
        sizes = [rows * cols for rows, cols in grids]
        features = self._features(_reorder(patches, sizes, order), tuple(grids[i] for i in order))
        back = sorted(order, key=order.__getitem__)
        return _reorder(features, [sizes[i] for i in order], back)

    @abstractmethod
    def embed(self, patches: Tensor, grids: Grids) -> Tensor:
        """(P, hidden_size) that enters the first layer, of (P, patch_dim) normalised patches."""

    @abstractmethod
    def tables(self, grids: Grids, hidden: Tensor) -> Tensor | None:
        """(2, P, 1, head_dim) rotary cosines and sines, of the type of `hidden`; None if nothing turns."""

    def _features(self, patches: Tensor, grids: Grids) -> Tensor:
        values = normalise(patches, self.config).to(self.patch_embedding.weight.dtype)
        hidden = self.embed(values, grids)
        tables = self.tables(grids, hidden)
        lengths = [rows * cols for rows, cols in grids]
        packing = Packing.plan(lengths, causal=False, device=patches.device, backend=self.attention)
        for layer in self.layers:
            hidden = layer(hidden, tables, packing)
        return self.norm(hidden)


def _reorder(x: Tensor, sizes: Sequence[int], order: Sequence[int]) -> Tensor:
    """The pieces of `x`, which are of `sizes`, in another order."""
    pieces = x.split(list(sizes))
    return torch.cat([pieces[i] for i in order])
