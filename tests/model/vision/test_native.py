from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def turned(x: torch.Tensor, places: list[tuple[int, int]], theta: float) -> torch.Tensor:
    """(P, head_dim): elements i and i + head_dim / 2 as a complex number, turned by row or by column."""
    half = x.shape[-1] // 2
    speeds = [theta ** (-2 * i / half) for i in range(half // 2)]
    angles = torch.tensor([[row * s for s in speeds] + [col * s for s in speeds] for row, col in places])
    whole = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(x[:, :half]), angles.double())
    return torch.cat((whole.real, whole.imag), -1)


def by_definition(encoder: Any, patches: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Seed-ViT of one picture in float64: LayerNorm, biases, plain GELU MLPs, no norm at the end."""
    own = encoder.config
    w = {name: parameter.detach().double() for name, parameter in encoder.named_parameters()}
    places = [
        (2 * i + k, 2 * j + m) for i in range(rows // 2) for j in range(cols // 2) for k in (0, 1) for m in (0, 1)
    ]
    x = normalise(patches, own).double() @ w["patch_embedding.weight"].T + w["patch_embedding.bias"]

    def norm(name: str) -> torch.Tensor:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], own.norm_eps)

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        return y @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for at in (f"layers.{i}" for i in range(own.num_hidden_layers)):
        query, key, value = linear(f"{at}.qkv", norm(f"{at}.norm_attention")).chunk(3, -1)
        heads = []
        for q, k, v in zip(*(part.split(own.head_dim, -1) for part in (query, key, value)), strict=True):
            scores = turned(q, places, own.rope_theta) @ turned(k, places, own.rope_theta).T / own.head_dim**0.5
            heads.append(scores.softmax(-1) @ v)
        x = x + linear(f"{at}.out", torch.cat(heads, -1))
        inner = linear(f"{at}.up", norm(f"{at}.norm_mlp"))
        x = x + linear(f"{at}.down", inner * 0.5 * (1 + torch.erf(inner / 2**0.5)))
    return x


def test_seed_vit_is_what_its_definition_says(make_encoder: Callable[..., Any]) -> None:
    """In float32 against float64: sums of some 50 terms of size 1, six of them in a row, err by about 1e-6 each."""
    encoder, patches = make_encoder("seed", norm_eps=0.1, rope_theta=100.0), random_patches(24)
    expected = by_definition(encoder, patches, 4, 6)
    torch.testing.assert_close(encoder(patches, ((4, 6),)).double(), expected, atol=2e-5, rtol=2e-5)
