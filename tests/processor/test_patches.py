from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sail_train.processor.patches import tiled, unpatchify, whole
from sail_train.processor.visuals import image_patches, lay_out
from sail_train.visual import ImageSpec

SPEC = ImageSpec(patch_size=4, merge_size=2, min_pixels=64, max_pixels=4096)
TILES = ImageSpec(patch_size=4, merge_size=2, mode="tile", tile_size=16, max_pixels=4096, min_pixels=64)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_patches_stand_block_by_block_and_hold_their_pixels() -> None:
    pixels = noise(16, 24)
    patches = whole(Image.fromarray(pixels), (4, 6), SPEC)
    assert patches.shape == (24, 48) and patches.dtype == np.uint8
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


@pytest.mark.parametrize("spec", [SPEC, TILES, ImageSpec(mode="tile", patch_size=4, tile_size=16, multi_scale=True)])
@pytest.mark.parametrize("size", [(8, 8), (30, 20), (300, 10), (7, 900), (500, 500), (1, 1), (64, 48)])
def test_patches_are_as_many_as_were_measured_for_any_size(size: tuple[int, int], spec: ImageSpec) -> None:
    visual = lay_out((size[1], size[0]), spec)
    patches = image_patches(Image.new("RGB", size), visual, spec)
    assert len(patches) == visual.num_patches == 4 * spec.num_tokens(size[1], size[0])
    assert visual.grids == spec.grids(size[1], size[0])


def test_tiles_come_in_raster_order_each_with_its_own_blocks() -> None:
    pixels = noise(32, 48)
    patches = tiled(Image.fromarray(pixels), [(2, 3)], TILES)
    assert patches.shape == (6 * 16, 48)
    for number, tile in enumerate(np.split(patches, 6)):
        top, left = 16 * (number // 3), 16 * (number % 3)
        cut = Image.fromarray(pixels[top : top + 16, left : left + 16])
        assert np.array_equal(tile, whole(cut, (4, 4), TILES)), number


def test_an_image_is_resized_to_its_tiles_and_shown_whole_last() -> None:
    image = Image.fromarray(noise(40, 50))
    first, second = (image.resize(size, Image.Resampling.BICUBIC) for size in ((32, 32), (48, 16)))
    patches = tiled(image, [(2, 2), (1, 3), (1, 1)], TILES)
    assert len(patches) == (4 + 3 + 1) * 16
    assert np.array_equal(patches[:64], tiled(first, [(2, 2)], TILES))
    assert np.array_equal(patches[64:112], tiled(second, [(1, 3)], TILES))
    assert np.array_equal(patches[112:], whole(image.resize((16, 16), Image.Resampling.BICUBIC), (4, 4), TILES))


def test_patches_can_be_laid_out_again() -> None:
    pixels = noise(16, 24)
    assert np.array_equal(unpatchify(whole(Image.fromarray(pixels), (4, 6), SPEC), (4, 6), SPEC), pixels)
