"""An RGB image -> resized -> patches in the order in which the model merges them.

Patches stand block by block: the `merge_size` squared blocks in raster order, the patches inside a block in
raster order, so that the model's pixel shuffle is a reshape. They travel as bytes; the model normalises them.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from sail_train.visual import ImageSpec


def patchify(image: Image.Image, spec: ImageSpec) -> tuple[np.ndarray, tuple[int, int]]:
    """((P, patch_dim) uint8, (patch rows, patch columns)) of an RGB image; a patch is channels first, flattened."""
    height, width = spec.resize(image.height, image.width)
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    side, merge = spec.patch_size, spec.merge_size
    rows, cols = height // side, width // side
    pixels = np.asarray(image, dtype=np.uint8)  # (height, width, 3)
    blocks = pixels.reshape(rows // merge, merge, side, cols // merge, merge, side, 3)
    # (block row, row in block, pixel row, block column, column in block, pixel column, channel)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * cols, spec.patch_dim)
    return np.ascontiguousarray(patches), (rows, cols)
