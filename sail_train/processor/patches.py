"""An RGB image -> resized, and cut into tiles where the model wants tiles -> patches in the order of the model's merge.

Within a picture patches stand block by block: the `merge_size` squared blocks in raster order, the patches inside a
block in raster order, so that the model's pixel shuffle is a reshape. They travel as bytes; the model normalises them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from sail_train.visual import Grid, ImageSpec


def whole(image: Image.Image, grid: Grid, spec: ImageSpec) -> np.ndarray:
    """(P, patch_dim) uint8 of an RGB image as one picture of `grid` patches."""
    return _patches(_resized(image, grid[0] * spec.patch_size, grid[1] * spec.patch_size), spec)


def tiled(image: Image.Image, tiles: Iterable[Grid], spec: ImageSpec) -> np.ndarray:
    """(P, patch_dim) uint8 of an RGB image cut by each of `tiles` in turn, tiles in raster order.

    The image is resized to the grid of tiles (bicubic, as InternVL does), whatever that does to its aspect ratio.
    """
    side = spec.tile_size
    cuts = []
    for rows, cols in tiles:
        pixels = _resized(image, rows * side, cols * side)
        cuts += [
            _patches(pixels[row : row + side, col : col + side], spec)
            for row in range(0, rows * side, side)
            for col in range(0, cols * side, side)
        ]
    return np.concatenate(cuts)


def unpatchify(patches: np.ndarray, grid: Grid, spec: ImageSpec) -> np.ndarray:
    """The (height, width, 3) uint8 pixels of one picture's (P, patch_dim) patches: for people to look at."""
    (rows, cols), side, merge = grid, spec.patch_size, spec.merge_size
    blocks = patches.reshape(rows // merge, cols // merge, merge, merge, 3, side, side)
    # (block row, row in block, pixel row, block column, column in block, pixel column, channel)
    return blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * side, cols * side, 3)


def _resized(image: Image.Image, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def _patches(pixels: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """(P, patch_dim) of (height, width, 3) pixels; a patch is channels first, flattened."""
    side, merge = spec.patch_size, spec.merge_size
    rows, cols = pixels.shape[0] // side, pixels.shape[1] // side
    blocks = pixels.reshape(rows // merge, merge, side, cols // merge, merge, side, 3)
    # (block row, block column, row in block, column in block, channel, pixel row, pixel column)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5)).reshape(rows * cols, spec.patch_dim)
