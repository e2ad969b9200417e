"""Encoders in whole models: drawn, saved, loaded, and taken from folders of transformers' own models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Aimv2VisionConfig, Aimv2VisionModel, CLIPConfig, CLIPModel, PreTrainedModel

from sail_train.model.build import load_model, save_model
from sail_train.model.config import ModelConfig, VisionConfig
from sail_train.model.vision.foreign_config import build_foreign
from sail_train.model.vlm import SailVLForConditionalGeneration

MakeConfig = Callable[..., ModelConfig]
MakeModel = Callable[..., SailVLForConditionalGeneration]
MakePatches = Callable[..., Tensor]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
GRIDS = ((4, 4), (2, 6))
CLIP = {"model_type": "clip_vision_model", "image_size": 16}


@pytest.fixture
def configured(make_config: MakeConfig, vision_kinds: dict[str, dict[str, Any]]) -> Callable[..., ModelConfig]:
    """The tiny model with the encoder of a kind."""

    def make(kind: str = "native", **values: Any) -> ModelConfig:
        return replace(make_config(), vision=VisionConfig(**{**SIZES, **vision_kinds[kind], **values}))

    return make


@pytest.fixture
def patches(random_patches: MakePatches) -> Tensor:
    return random_patches(28)


def test_a_model_and_its_encoder_alone_come_back_from_a_folder(
    make_model: MakeModel, configured: Callable[..., ModelConfig], kind: str, patches: Tensor, tmp_path: Path
) -> None:
    config = configured(kind)
    first = make_model(config).eval()
    expected = first.image_features(patches, GRIDS)
    save_model(first, tmp_path / "whole")
    again = load_model(tmp_path / "whole")
    assert torch.equal(again.image_features(patches, GRIDS), expected)
    part = make_model(config, seed=1, parents={"vision": str(tmp_path / "whole")}).eval()
    assert torch.equal(part.vision(patches, GRIDS), first.vision(patches, GRIDS))
    assert not torch.equal(part.image_features(patches, GRIDS), expected)  # an adapter of its own


def test_an_encoder_is_drawn_from_its_seed_alone(
    make_model: MakeModel, configured: Callable[..., ModelConfig], kind: str, patches: Tensor
) -> None:
    torch.manual_seed(5)
    first = make_model(configured(kind)).vision.state_dict()
    torch.manual_seed(6)
    second, other = (make_model(configured(kind), seed=seed).vision.state_dict() for seed in (0, 1))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_a_random_table_of_positions_is_no_noise(make_model: MakeModel, configured: Callable[..., ModelConfig]) -> None:
    first, second = (make_model(configured("aimv2"), seed=seed).vision.positions.table for seed in (0, 1))
    assert torch.equal(first, second) and 0.5 < first.square().mean().sqrt() < 0.9


def saved_alone(kind: str, folder: Path, vision_kinds: dict[str, dict[str, Any]]) -> PreTrainedModel:
    """A folder of transformers' vision model as transformers saves it, weights all random."""
    torch.manual_seed(3)
    model = build_foreign(VisionConfig(**{**SIZES, **vision_kinds[kind]}))  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    "kind", ["clip_vision_model", "siglip_vision_model", "siglip2_vision_model", "internvl_vision", "dinov2", "vit"]
)
def test_transformers_own_folder_is_a_vision_path(
    make_model: MakeModel,
    configured: Callable[..., ModelConfig],
    vision_kinds: dict[str, dict[str, Any]],
    kind: str,
    tmp_path: Path,
) -> None:
    source = saved_alone(kind, tmp_path, vision_kinds)
    taken = make_model(configured(kind, path=str(tmp_path))).vision.model.state_dict()
    assert taken.keys() == source.state_dict().keys()
    assert all(torch.equal(tensor, taken[name]) for name, tensor in source.state_dict().items())


def save_clip(folder: Path, **vision: Any) -> CLIPModel:
    values = {k: v for k, v in SIZES.items()} | {"image_size": 16} | vision
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    model = CLIPModel(CLIPConfig(vision_config=values, text_config=text, projection_dim=4))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("prefix", ["", "model.vision_tower."])
def test_a_vision_model_is_found_inside_a_larger_one(
    make_model: MakeModel, configured: Callable[..., ModelConfig], tmp_path: Path, prefix: str
) -> None:
    clip = save_clip(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({prefix + name: tensor for name, tensor in load_file(file).items()}, file)
    taken = make_model(configured("clip_vision_model", path=str(tmp_path))).vision.model.state_dict()
    whole = clip.vision_model.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in taken.items())


def test_a_folder_of_another_shape_or_model_is_refused(
    make_model: MakeModel, configured: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    save_clip(tmp_path, hidden_act="gelu")
    with pytest.raises(ValueError, match="vision.model.hidden_act is quick_gelu in the config, gelu in .*must agree"):
        make_model(configured("clip_vision_model", path=str(tmp_path)))
    with pytest.raises(ValueError, match="holds a 'clip' model, which has no 'vit' in it"):
        make_model(configured("vit", path=str(tmp_path)))
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "unheard_of"}))
    with pytest.raises(ValueError, match="holds a 'unheard_of' model"):
        make_model(configured("clip_vision_model", path=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({**values, "vision_config": {"hidden_size": "wide"}}))
    with pytest.raises(ValueError, match="config.json is no config of 'clip'"):
        make_model(configured("clip_vision_model", path=str(tmp_path)))


def test_a_saved_encoder_of_another_kind_is_refused(
    make_model: MakeModel, configured: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    save_model(make_model(configured("native")), tmp_path / "native")
    save_model(make_model(configured("dinov2")), tmp_path / "dino")
    with pytest.raises(ValueError, match="holds a 'sail_vl' model, which has no 'dinov2' in it"):
        make_model(configured("dinov2"), parents={"vision": str(tmp_path / "native")})
    with pytest.raises(ValueError, match="which has no 'vit' in it"):
        make_model(configured("vit"), parents={"vision": str(tmp_path / "dino")})


def test_missing_weights_are_named(
    make_model: MakeModel, configured: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    save_clip(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "layers.1.mlp.fc1" not in name}, file)
    with pytest.raises(
        ValueError, match=r"lacks weights of the vision model: encoder.layers.1.mlp.fc1.\w+, .*\(2 in all\)"
    ):
        make_model(configured("clip_vision_model", path=str(tmp_path)))


@pytest.mark.parametrize("kind", ["aimv2", "clip_vision_model"])
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_an_encoder_that_was_trained_on_other_colours_is_refused(
    make_model: MakeModel, configured: Callable[..., ModelConfig], tmp_path: Path, kind: str, file: str
) -> None:
    if kind == "aimv2":
        sizes = {name: value for name, value in SIZES.items()}
        Aimv2VisionModel(Aimv2VisionConfig(**sizes, image_size=16)).save_pretrained(tmp_path)
    else:
        save_clip(tmp_path)
    config = configured(kind, position_grid=4, path=str(tmp_path), image_mean=[0.5, 0.4, 0.3], gated_mlp=True)

    def say(**values: Any) -> None:
        text = values if file == "preprocessor_config.json" else {"image_processor": values}
        (tmp_path / file).write_text(json.dumps(text))

    say(image_mean=[0.5, 0.4, 0.3], image_processor_type="SomeImageProcessor")
    make_model(config)
    say(image_mean=[0.5, 0.5, 0.5])
    message = r"vision.image_mean=\[0.5, 0.4, 0.3\] in the config, \[0.5, 0.5, 0.5\] in .*; they must agree"
    with pytest.raises(ValueError, match=message):
        make_model(config)
    say(image_std=[1, 1, 1])
    with pytest.raises(ValueError, match=r"vision.image_std=\[0.229, 0.224, 0.225\] in the config, \[1.0, 1.0, 1.0\]"):
        make_model(config)
    say(do_normalize=False)
    with pytest.raises(ValueError, match=r"vision.image_mean=.* in the config, \[0.0, 0.0, 0.0\] in"):
        make_model(config)
    say(image_mean="grey")
    with pytest.raises(ValueError, match="image_mean='grey' should be three numbers"):
        make_model(config)


def test_an_encoder_of_transformers_says_how_it_is_taken(
    make_model: MakeModel,
    configured: Callable[..., ModelConfig],
    vision_kinds: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    saved_alone("siglip_vision_model", tmp_path, vision_kinds)
    hint = "set model.vision.type=transformers and model.vision.model.model_type=siglip_vision_model"
    for name in ("siglip", "siglip_vision_model"):
        values = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": name}))
        with pytest.raises(ValueError, match=f"holds a '{name}' model; a vision part comes from a sail_vl one; {hint}"):
            make_model(configured("aimv2", path=str(tmp_path)))
        with pytest.raises(ValueError, match=f"holds a '{name}' model, which has no language part"):
            make_model(configured("aimv2"), parents={"language": str(tmp_path)})
