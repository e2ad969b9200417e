from __future__ import annotations

import numpy as np
import pytest
import torch

from sail_train.model.hf_config import SailVLVisionConfig
from sail_train.model.vision import build_encoder
from sail_train.model.vision.patches import normalise, patch_positions
from sail_train.model.vision.rotary import rope_table, rotate
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.patches import whole
from sail_train.visual import ImageSpec


def random_patches(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 48), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    "grids", [((4, 6), (2, 2), (4, 6)), ((2, 8), (4, 4), (8, 2)), ((2, 2), (6, 4), (2, 4), (2, 2))]
)
def test_an_image_sees_itself_alone(model: SailVLForConditionalGeneration, grids: tuple[tuple[int, int], ...]) -> None:
    sizes = [rows * cols for rows, cols in grids]
    patches = random_patches(sum(sizes))
    together = model.vision(patches, grids)
    alone = [model.vision(part, (grid,)) for part, grid in zip(patches.split(sizes), grids, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_an_image_has_its_features_whatever_stands_before_it(model: SailVLForConditionalGeneration) -> None:
    first, second = random_patches(24), random_patches(16, seed=1)
    forward = model.vision(torch.cat((first, second)), ((4, 6), (4, 4)))
    backward = model.vision(torch.cat((second, first)), ((4, 4), (4, 6)))
    torch.testing.assert_close(forward[:24], backward[16:], atol=1e-5, rtol=1e-5)


def test_positions_follow_the_order_in_which_the_processor_cuts() -> None:
    from PIL import Image

    spec = ImageSpec(patch_size=4, merge_size=2, min_pixels=64, max_pixels=4096)
    rows = np.repeat(np.arange(6), 4)[:, None].repeat(32, 1)  # each pixel holds its patch row and column
    cols = np.repeat(np.arange(8), 4)[None].repeat(24, 0)
    pixels = np.stack((rows, cols, rows), axis=-1).astype(np.uint8)
    grid = (6, 8)
    patches = whole(Image.fromarray(pixels), grid, spec)
    positions = patch_positions(*grid, spec.merge_size)
    assert np.array_equal(patches[:, [0, 16]], positions.numpy())


def test_place_matters_in_both_directions(model: SailVLForConditionalGeneration) -> None:
    patches = random_patches(16)
    wide, tall, square = (model.vision(patches, (grid,)) for grid in ((2, 8), (8, 2), (4, 4)))
    assert not torch.allclose(wide, tall, atol=1e-3) and not torch.allclose(wide, square, atol=1e-3)


def test_rotation_keeps_products_of_equal_offsets(model: SailVLForConditionalGeneration) -> None:
    """The product of a turned query and key depends on their distance in rows and columns alone."""
    tables = rope_table(4, 4, 1, 8, 100.0, torch.device("cpu"))[:, :, None]  # (2, 16, 1, 8), raster order
    query, key = torch.randn(1, 1, 8).expand(16, 1, 8), torch.randn(1, 1, 8).expand(16, 1, 8)
    products = torch.einsum("qhd,khd->qk", rotate(query, tables), rotate(key, tables)).view(4, 4, 4, 4)
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 1, 3, 3])
    torch.testing.assert_close(products[3, 0, 1, 1], products[2, 2, 0, 3])
    assert not torch.isclose(products[0, 0, 1, 2], products[0, 0, 2, 1])


def test_bytes_are_normalised_per_channel(model: SailVLForConditionalGeneration) -> None:
    config, patches = model.config.vision_config, random_patches(5)
    pixels = patches.view(5, 3, 16).float() / 255
    mean, std = torch.tensor(config.image_mean)[:, None], torch.tensor(config.image_std)[:, None]
    torch.testing.assert_close(normalise(patches, config), ((pixels - mean) / std).flatten(1))


def test_parameters_are_those_of_seed_vit() -> None:
    """27 layers of 12 x 1280^2 matrix elements and 13 x 1280 in biases and norms; 588 x 1280 + 1280 of patches."""
    seed = SailVLVisionConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=27, num_attention_heads=20, norm="layer",
        gated_mlp=False, hidden_act="gelu", bias=True, final_norm=False,
    )  # fmt: skip
    with torch.device("meta"):
        encoder = build_encoder(seed, 2)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 532_044_800


@pytest.mark.parametrize(("field", "value"), [("norm", "batch"), ("hidden_act", "gulu"), ("type", "navit")])
def test_an_unknown_name_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"vision_config.{field}='{value}' is none of"):
        build_encoder(SailVLVisionConfig(**{field: value}), 2)
