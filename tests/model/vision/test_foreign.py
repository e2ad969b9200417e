from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedModel

from sail_train.model.hf_config import SailVLVisionConfig
from sail_train.model.vision import build_encoder
from sail_train.model.vision.patches import normalise, pictures, raster_index

MakeEncoder = Callable[..., Any]
MakePatches = Callable[..., Tensor]
CPU = torch.device("cpu")

SIZED = ["clip_vision_model", "siglip_vision_model", "internvl_vision", "dinov2", "dinov2_with_registers", "vit"]
"""Made for one size, and called with pixels."""
DEFAULTS = {
    "clip_vision_model": {"intermediate_size": 32},
    "siglip_vision_model": {"intermediate_size": 32, "vision_use_head": True},
    "internvl_vision": {"intermediate_size": 32},
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2},
    "vit": {"intermediate_size": 32},
}


def straight(name: str, encoder: Any, values: dict[str, Any]) -> PreTrainedModel:
    """transformers' model, built without our code, with the encoder's weights and random ones where it has more."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4}
    kind: Any = CONFIG_MAPPING[name]
    model = MODEL_MAPPING[kind](kind(**sizes, **DEFAULTS[name], **values))
    loaded = model.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    return model.eval()


def in_our_order(features: Tensor, rows: int, cols: int) -> Tensor:
    return features[:, raster_index(rows, cols, 2, CPU)].flatten(0, 1)


@pytest.mark.parametrize("grid", [(4, 4), (6, 4)])
@pytest.mark.parametrize("select", [-1, -2])
@pytest.mark.parametrize("name", SIZED)
def test_features_are_those_of_a_direct_call(
    make_encoder: MakeEncoder,
    random_patches: MakePatches,
    foreign_values: dict[str, dict[str, Any]],
    name: str,
    select: int,
    grid: tuple[int, int],
) -> None:
    encoder = make_encoder(name, select_layer=select)
    rows, cols = grid
    patches = random_patches(2 * rows * cols)
    pixels = pictures(normalise(patches, encoder.config).view(2, rows * cols, 48), rows, cols, 2)
    resize = {"interpolate_pos_encoding": True} if grid != (4, 4) and name in (SIZED[0], SIZED[1], "vit") else {}
    output = straight(name, encoder, foreign_values[name])(pixels, output_hidden_states=True, **resize)
    tokens = output.last_hidden_state if select == -1 else output.hidden_states[2]  # after two of three layers
    expected = in_our_order(tokens[:, -rows * cols :], rows, cols)
    torch.testing.assert_close(encoder(patches, (grid, grid)), expected, atol=0, rtol=0)


def test_dropped_tokens_stand_in_front(make_encoder: MakeEncoder, random_patches: MakePatches) -> None:
    """Registers and class token: the features are of the last tokens, so they follow a change of the last patch."""
    encoder, patches = make_encoder("dinov2_with_registers", select_layer=-3), random_patches(16)
    encoder.model.encoder.layer[0].layer_scale1.lambda1.data.zero_()  # no attention: a patch sees itself
    changed = patches.clone()
    changed[15] = 0
    moved = (encoder(patches, ((4, 4),)) != encoder(changed, ((4, 4),))).any(-1)
    assert moved[15] and not moved[:15].any()


def test_siglip2_gets_patches_and_shapes(make_encoder: MakeEncoder, random_patches: MakePatches) -> None:
    """Directly: both pictures in one padded batch, rows of pixels with their channels together, in raster order."""
    encoder = make_encoder("siglip2_vision_model")
    patches, grids = random_patches(24 + 8), ((4, 6), (2, 4))
    values = torch.zeros(2, 24, 48)
    mask = torch.zeros(2, 24, dtype=torch.long)
    for i, (part, (rows, cols)) in enumerate(zip(patches.split([24, 8]), grids, strict=True)):
        picture = pictures(normalise(part, encoder.config)[None], rows, cols, 2)[0]  # (3, height, width)
        cut = picture.view(3, rows, 4, cols, 4).permute(1, 3, 2, 4, 0).reshape(rows * cols, 48)
        values[i, : rows * cols], mask[i, : rows * cols] = cut, 1
    direct = encoder.model(values, mask, torch.tensor(grids)).last_hidden_state
    expected = torch.cat([in_our_order(direct[i : i + 1, : r * c], r, c) for i, (r, c) in enumerate(grids)])
    torch.testing.assert_close(
        encoder(patches, grids), expected, atol=1e-5, rtol=1e-5
    )  # padding changes the sums' order


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model_type": "sigclip"}, "model_type='sigclip' is no architecture of this transformers; did you mean"),
        ({"model_type": "qwen3"}, "'qwen3' is not a model of images alone"),
        ({"model_type": "siglip"}, "'siglip' is not a model of images alone; did you mean 'siglip_vision_model'"),
        ({"model_type": "swin"}, "'swin' has no num_attention_heads, or several"),
        ({"model_type": "convnext"}, "'convnext' has no hidden_size, or several"),
        ({"model_type": "pixtral"}, "'pixtral' asks for image_sizes, not for pixels alone"),
        ({"model_type": "vit", "hidden_size": 24}, "vision.model.hidden_size=24, and 16 by vision's sizes"),
        ({"model_type": "vit", "hidden_dropout_prob": 0.1}, "hidden_dropout_prob=0.1: features would differ"),
        ({"model_type": "vit", "image_size": "wide"}, "vision.model is no config of 'vit'"),
        ({"model_type": "vit", "attn_implementation": "some/kernel"}, "can make transformers load code"),
    ],
)
def test_what_is_no_such_vision_model_is_refused(model: dict[str, Any], message: str) -> None:
    config = SailVLVisionConfig(
        type="transformers", model=model, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, patch_size=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        build_encoder(config, 2)


def test_an_mlp_ratio_must_come_out_whole() -> None:
    config = SailVLVisionConfig(
        type="transformers", model={"model_type": "dinov2"}, hidden_size=16, intermediate_size=24
    )
    with pytest.raises(ValueError, match="intermediate_size=24 must be a multiple of hidden_size=16: 'dinov2' has"):
        build_encoder(config, 2)


def test_a_model_of_one_size_refuses_others(make_encoder: MakeEncoder, random_patches: MakePatches) -> None:
    encoder = make_encoder("clip_vision_model")
    fixed = make_encoder(type="transformers", model={"model_type": "aimv2_vision_model", "image_size": 16})
    assert encoder.blank_grid == (2, 2) and fixed.blank_grid == (4, 4)
    assert fixed(random_patches(16), ((4, 4),)).shape == (16, 16)
    with pytest.raises(ValueError, match=r"6 x 4 patches: 'aimv2_vision_model' takes \(4, 4\) alone.*tile_size to 16"):
        fixed(random_patches(24), ((6, 4),))


def test_features_that_do_not_add_up_are_refused(make_encoder: MakeEncoder, random_patches: MakePatches) -> None:
    encoder = make_encoder("vit")
    encoder.config.patch_size = 4
    encoder.model.layernorm.register_forward_hook(lambda *args: args[2][:, :9])
    with pytest.raises(ValueError, match=r"'vit' gives \(1, 9, 16\) for 1 pictures of 4 x 4 patches"):
        encoder(random_patches(16), ((4, 4),))


def test_what_draws_at_random_in_training_is_off(make_encoder: MakeEncoder, random_patches: MakePatches) -> None:
    patches = random_patches(16)
    for name in ("dinov3_vit", "beit"):
        values = {"model_type": name, "image_size": 16}
        encoder = make_encoder(type="transformers", model=values).train()
        assert torch.equal(encoder(patches, ((4, 4),)), encoder(patches, ((4, 4),)))
