from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sail_train.processor.patches import patchify
from sail_train.visual import ImageSpec

SPEC = ImageSpec(patch_size=4, merge_size=2, min_pixels=64, max_pixels=4096)


def test_patches_stand_block_by_block_and_hold_their_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    patches, (rows, cols) = patchify(Image.fromarray(pixels), SPEC)
    assert patches.shape == (rows * cols, 48) and patches.dtype == np.uint8 and (rows, cols) == (4, 6)
    order = [
        (2 * block_row + i, 2 * block_col + j)
        for block_row in range(2)
        for block_col in range(3)
        for i in range(2)
        for j in range(2)
    ]
    for patch, (row, col) in zip(patches, order, strict=True):
        expected = pixels[4 * row : 4 * row + 4, 4 * col : 4 * col + 4].transpose(2, 0, 1)
        assert np.array_equal(patch, expected.ravel())


@pytest.mark.parametrize("size", [(8, 8), (30, 20), (300, 10), (7, 900), (500, 500), (1, 1)])
def test_patches_agree_with_the_spec_for_any_size(size: tuple[int, int]) -> None:
    patches, grid = patchify(Image.new("RGB", size), SPEC)
    assert grid == SPEC.grid(size[1], size[0])
    assert len(patches) == grid[0] * grid[1] == 4 * SPEC.num_tokens(size[1], size[0])
    assert len(patches) * 16 <= SPEC.max_pixels
