from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import Aimv2VisionConfig, Aimv2VisionModel

from sail_train.model.config import VisionConfig
from sail_train.model.hf_config import SailVLVisionConfig
from sail_train.model.vision import build_encoder
from sail_train.model.vision.patches import normalise, pictures, raster_index

MakeEncoder = Callable[..., Any]
MakePatches = Callable[..., Tensor]
LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 8}
HUGE = {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 12}


@pytest.mark.parametrize(("sizes", "count"), [(LARGE, 309_984_256), (HUGE, 682_031_616)])
def test_parameters_are_those_of_sail_vit(sizes: dict[str, int], count: int) -> None:
    with torch.device("meta"):
        encoder = build_encoder(SailVLVisionConfig(type="aimv2", position_grid=32, **sizes), 2)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count


def transformers_twin(encoder: Any) -> Aimv2VisionModel:
    """transformers' AIMv2 with the encoder's weights: its matrices are apart where ours are joined."""
    own = encoder.config
    twin = Aimv2VisionModel(
        Aimv2VisionConfig(
            hidden_size=own.hidden_size, intermediate_size=own.intermediate_size, patch_size=own.patch_size,
            num_hidden_layers=own.num_hidden_layers, num_attention_heads=own.num_attention_heads,
            image_size=own.position_grid * own.patch_size, rms_norm_eps=own.norm_eps, use_head=False,
        )
    )  # fmt: skip
    weights = {
        "embeddings.patch_embed.weight": encoder.patch_embedding.weight.unflatten(
            1, (3, own.patch_size, own.patch_size)
        ),
        "embeddings.patch_embed.bias": encoder.patch_embedding.bias,
        "embeddings.rms_norm.weight": encoder.patch_norm.weight,
        "embeddings.position_embedding.weight": encoder.positions.table,
        "rms_norm.weight": encoder.norm.weight,
    }
    for i, layer in enumerate(encoder.layers):
        at = f"encoder.layers.{i}"
        for name, matrix in zip("qkv", layer.qkv.weight.chunk(3), strict=True):
            weights[f"{at}.attention.{name}_proj.weight"] = matrix
        weights[f"{at}.attention.out_proj.weight"] = layer.out.weight
        gate, up = layer.gate_up.weight.chunk(2)
        weights |= {f"{at}.ffn.gate_proj.weight": gate, f"{at}.ffn.up_proj.weight": up}
        weights[f"{at}.ffn.down_proj.weight"] = layer.down.weight
        weights |= {
            f"{at}.rms_norm1.weight": layer.norm_attention.weight,
            f"{at}.rms_norm2.weight": layer.norm_mlp.weight,
        }
    twin.load_state_dict(weights)
    return twin.eval()


@pytest.mark.parametrize("size", [16, 64])
def test_features_equal_those_of_transformers(
    make_encoder: MakeEncoder, random_patches: MakePatches, size: int
) -> None:
    """In float32 only the order of sums differs: 6e-8 each, over three layers of sums of up to 3 x 64 terms."""
    encoder = make_encoder("aimv2", hidden_size=size, intermediate_size=3 * size)
    patches = random_patches(32)
    ours = encoder(patches, ((4, 4), (4, 4))).view(2, 16, size)
    pixels = pictures(normalise(patches, encoder.config).view(2, 16, 48), 4, 4, 2)
    with torch.no_grad():
        theirs = transformers_twin(encoder)(pixels).last_hidden_state
    order = raster_index(4, 4, 2, torch.device("cpu"))
    torch.testing.assert_close(ours, theirs[:, order], atol=2e-5, rtol=2e-5)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def by_definition(encoder: Any, patches: Tensor) -> Tensor:
    """AIMv2 of one picture of the table's size, in float64, loops over heads and all."""
    own, side = encoder.config, encoder.config.position_grid
    w = {name: parameter.detach().double() for name, parameter in encoder.named_parameters()}
    mean, std = torch.tensor(own.image_mean).double(), torch.tensor(own.image_std).double()
    pixels = (patches.view(-1, 3, 16).double() / 255 - mean[:, None]) / std[:, None]
    x = pixels.flatten(1) @ w["patch_embedding.weight"].T + w["patch_embedding.bias"]
    x = rms_norm(x, w["patch_norm.weight"], own.norm_eps)
    places = [
        (2 * i + k, 2 * j + m) for i in range(side // 2) for j in range(side // 2) for k in (0, 1) for m in (0, 1)
    ]
    x = x + torch.stack([w["positions.table"][row * side + col] for row, col in places])
    for i in range(own.num_hidden_layers):
        at = f"layers.{i}"
        query, key, value = (
            rms_norm(x, w[f"{at}.norm_attention.weight"], own.norm_eps) @ w[f"{at}.qkv.weight"].T
        ).chunk(3, -1)
        heads = []
        for q, k, v in zip(*(part.split(own.head_dim, -1) for part in (query, key, value)), strict=True):
            heads.append((q @ k.T / own.head_dim**0.5).softmax(-1) @ v)
        x = x + torch.cat(heads, -1) @ w[f"{at}.out.weight"].T
        gate, up = (rms_norm(x, w[f"{at}.norm_mlp.weight"], own.norm_eps) @ w[f"{at}.gate_up.weight"].T).chunk(2, -1)
        x = x + (silu(gate) * up) @ w[f"{at}.down.weight"].T
    return rms_norm(x, w["norm.weight"], own.norm_eps)


def test_features_are_those_of_the_definition(make_encoder: MakeEncoder, random_patches: MakePatches) -> None:
    encoder, patches = make_encoder("aimv2", norm_eps=0.1), random_patches(16)  # so large that its place shows
    torch.testing.assert_close(
        encoder(patches, ((4, 4),)).double(), by_definition(encoder, patches), atol=1e-5, rtol=1e-5
    )


def test_an_earlier_layer_is_taken_as_it_is(make_encoder: MakeEncoder, random_patches: MakePatches) -> None:
    patches, seen = random_patches(16), []
    whole, early = make_encoder("aimv2"), make_encoder("aimv2", select_layer=-2)
    early.load_state_dict(whole.state_dict(), strict=False)
    whole.layers[1].register_forward_hook(lambda *args: seen.append(args[2]))
    whole(patches, ((4, 4),))
    assert torch.equal(early(patches, ((4, 4),)), seen[0])
    assert len(early.layers) == 2 and "norm.weight" not in early.state_dict()


def test_depth_and_table_follow_the_config() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    assert [VisionConfig(**sizes, select_layer=select).depth for select in (-1, -2, -4)] == [4, 3, 1]
    with pytest.raises(ValueError, match="position_grid=0 must be at least 1 patch"):
        VisionConfig(**sizes, type="aimv2", position_grid=0)
