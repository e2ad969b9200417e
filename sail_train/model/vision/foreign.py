"""Any vision model of transformers that has one feature per patch: SigLIP, SigLIP 2, CLIP, InternViT, DINOv2, ...

bytes -> normalised patches -> pictures of equal shape as one batch -> the model -> its patch tokens, back in
merge-block order. Attention is per picture by the batch, so nothing is packed. A model with a position table is asked
to interpolate it for pictures of another size, if it can; class and register tokens, which stand in front, are
dropped. The features are the model's `last_hidden_state` (normalised where the model does so) or, with `select_layer`
below -1, an earlier layer's output.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from sail_train.model.hf_config import SailVLVisionConfig
from sail_train.model.vision import Grids
from sail_train.model.vision.foreign_config import build_foreign
from sail_train.model.vision.foreign_weights import foreign_tensors
from sail_train.model.vision.patches import normalise, pictures, raster_index


class ForeignEncoder(nn.Module):
    def __init__(self, config: SailVLVisionConfig, merge_size: int, *, attention: str = "auto") -> None:
        super().__init__()
        self.config, self.merge_size = config, merge_size
        self.model = build_foreign(config)
        inputs = inspect.signature(type(self.model).forward).parameters
        self.takes_patches = "spatial_shapes" in inputs
        self.asks = "interpolate_pos_encoding" in inputs
        self.only_grid = None if self._resizes() else self._native_grid()
        self.blank_grid = self.only_grid or (merge_size, merge_size)
        # For DeepSpeed: ZeRO 3 gathers all weights once per forward. The model is called once per shape of picture,
        # which ranks do not have in common; gathered layer by layer they would wait for each other.
        self._z3_leaf = True

    def __call__(self, patches: Tensor, grids: Grids) -> Tensor:
        """(P, hidden_size) features of (P, patch_dim) uint8 patches; ValueError for a size it cannot take.

        The module proper begins at the normalised values: where it trains they ask for a gradient, since DeepSpeed
        sees the end of a leaf's backward by its inputs', and bytes have none.
        """
        values = normalise(patches, self.config).to(next(self.model.parameters()).dtype)
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        return super().__call__(values.requires_grad_(trains), grids)

    def forward(self, values: Tensor, grids: Grids) -> Tensor:
        """(P, hidden_size) features of (P, patch_dim) normalised patches."""
        pieces = values.split([rows * cols for rows, cols in grids])
        features: list[Tensor] = [values] * len(grids)
        for grid in dict.fromkeys(grids):
            where = [i for i, other in enumerate(grids) if other == grid]
            batch = self._batch(torch.stack([pieces[i] for i in where]), *grid)
            for i, feature in zip(where, batch, strict=True):
                features[i] = feature
        return torch.cat(features)

    def tensors(self, folder: Path) -> Iterator[tuple[str, Tensor]]:
        """(own name, tensor) of the encoder's weights in a folder that holds its model, alone or in a larger one."""
        for name, tensor in foreign_tensors(self.model, folder):
            yield f"model.{name}", tensor

    def _batch(self, patches: Tensor, rows: int, cols: int) -> Tensor:
        """(n, rows * cols, hidden_size) features of (n, rows * cols, patch_dim) patches, both in merge-block order."""
        if self.only_grid not in (None, (rows, cols)):
            raise ValueError(
                f"a picture of {rows} x {cols} patches: {self.model.config.model_type!r} takes {self.only_grid} alone; "
                f"set image.mode to 'tile' and image.tile_size to {self.blank_grid[0] * self.config.patch_size}"
            )
        order = raster_index(rows, cols, self.merge_size, patches.device)
        earlier = self.config.select_layer != -1
        inputs = self._patches(patches, rows, cols, order) if self.takes_patches else self._pixels(patches, rows, cols)
        output = self.model(**inputs, output_hidden_states=earlier)
        tokens = output.hidden_states[self.config.select_layer] if earlier else output.last_hidden_state
        extra = tokens.shape[1] - rows * cols if tokens.ndim == 3 else -1
        if extra < 0 or tokens.shape[0] != len(patches) or tokens.shape[2] != self.config.hidden_size:
            raise ValueError(
                f"{self.model.config.model_type!r} gives {tuple(tokens.shape)} for {len(patches)} pictures of "
                f"{rows} x {cols} patches: not one feature of {self.config.hidden_size} per patch"
            )
        return tokens[:, extra:].index_select(1, order)

    def _pixels(self, patches: Tensor, rows: int, cols: int) -> dict[str, Tensor | bool]:
        inputs: dict[str, Tensor | bool] = {"pixel_values": pictures(patches, rows, cols, self.merge_size)}
        if self.asks and (rows, cols) != self._native_grid():
            inputs["interpolate_pos_encoding"] = True
        return inputs

    def _patches(self, patches: Tensor, rows: int, cols: int, order: Tensor) -> dict[str, Tensor]:
        """For models that cut no pixels themselves (SigLIP 2): raster order, and the channels of a pixel together."""
        raster = patches.index_select(1, order.argsort())
        side = self.config.patch_size
        values = raster.unflatten(2, (3, side * side)).transpose(2, 3).flatten(2)  # (n, rows * cols, patch_dim)
        shapes = torch.tensor([[rows, cols]] * len(patches), device=patches.device)
        mask = torch.ones(values.shape[:2], dtype=torch.long, device=patches.device)
        return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": shapes}

    def _native_grid(self) -> tuple[int, int]:
        """(rows, columns) of the pictures that the model's positions were made for."""
        size = self.model.config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return height // self.config.patch_size, width // self.config.patch_size

    def _resizes(self) -> bool:
        """Whether it takes pictures of any shape: by interpolation, or for want of a position table."""
        interpolates = any(hasattr(module, "interpolate_pos_encoding") for module in self.model.modules())
        rotary = any("rope" in name for name, _ in self.model.named_modules())
        return self.takes_patches or interpolates or rotary
