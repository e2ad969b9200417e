"""Ours -> the released format -> ours: nothing is lost, and what it has no words for is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sail_train.export.importing import import_released
from sail_train.export.write import export
from sail_train.model.build import load_model
from sail_train.processor.processor import load_processor

EXPERTS = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    "language", [{}, {"tie_word_embeddings": False}, EXPERTS], ids=["tied", "untied", "mixture of experts"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_exported_comes_back_bit_for_bit(
    make_run: Callable[..., Path], tmp_path: Path, language: dict[str, Any], dtype: str
) -> None:
    run = make_run(tmp_path / "run", "aimv2", dtype=dtype, **language)
    ours = weights(run / "model")
    released = export(run, tmp_path / "released", format="released")
    back = import_released(released, tmp_path / "back")
    found = weights(back)
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[name], ours[name]) and found[name].dtype == ours[name].dtype for name in ours)
    for name in ("config.json", "processor_config.json", "generation_config.json", "tokenizer.json"):
        first, second = (json.loads((folder / name).read_text()) for folder in (run / "model", back))
        assert first == second, name
    ids = torch.arange(6)[None]
    assert torch.equal(load_model(run)(input_ids=ids).logits, load_model(back)(input_ids=ids).logits)


def test_a_released_folder_has_the_names_that_the_checkpoints_have(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    released = export(make_run(tmp_path / "run", "aimv2", **EXPERTS), tmp_path / "released", format="released")
    found = weights(released)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    layer = "vision_model.trunk.blocks.1."
    expected = {
        "vision_model.preprocessor.patchifier.proj.weight": (16, 3, 4, 4),
        "vision_model.preprocessor.patchifier.proj.bias": (16,),
        "vision_model.preprocessor.patchifier.norm.weight": (16,),
        "vision_model.preprocessor.pos_embed": (1, 16, 16),
        f"{layer}attn.qkv.weight": (48, 16),
        f"{layer}attn.proj.weight": (16, 16),
        f"{layer}norm_1.weight": (16,),
        f"{layer}norm_2.weight": (16,),
        f"{layer}mlp.fc1.weight": (24, 16),
        f"{layer}mlp.fc2.weight": (16, 24),
        f"{layer}mlp.fc3.weight": (24, 16),
        "vision_model.trunk.post_trunk_norm.weight": (16,),
        "mlp1.0.weight": (64,),
        "mlp1.1.weight": (16, 64),
        "mlp1.3.bias": (16,),
        "language_model.model.layers.1.mlp.experts.3.gate_proj.weight": (8, 16),
        "language_model.model.layers.0.mlp.gate.weight": (4, 16),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    prefixes = {".".join(name.split(".")[:2]) for name in found}
    assert prefixes == {
        "vision_model.preprocessor", "vision_model.trunk", "mlp1.0", "mlp1.1", "mlp1.3", "language_model.model",
    }  # fmt: skip
    config = json.loads((released / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("sailvl", ["SAILVLModel"])
    assert config["llm_config"]["model_type"] == "qwen3_moe" and config["vision_config"]["image_size"] == 16
    assert not list(released.glob("*.py")) and not (released / "ours").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [("native", r"vision.type='native' cannot be written in the released format, which has 'aimv2' alone")],
)
def test_what_the_released_format_cannot_say_is_refused(
    make_run: Callable[..., Path], tmp_path: Path, kind: str, message: str
) -> None:
    run = make_run(tmp_path / "run", kind)
    with pytest.raises(ValueError, match=message):
        export(run, tmp_path / "released", format="released")
    assert not list(tmp_path.glob("released*"))


@pytest.fixture(scope="module")
def released(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("released")
    return export(make_run(root / "run", "aimv2"), root / "folder", format="released")


@pytest.fixture
def spoiled(released: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a released folder whose config has other values; None takes a key away."""

    def make(section: str | None = None, /, **values: Any) -> Path:
        folder = tmp_path / "spoiled"
        folder.mkdir()
        for file in released.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "preprocessor_config.json").unlink()
        config = json.loads((folder / "config.json").read_text())
        inner = config if section is None else config[section]
        inner |= values
        for name in [name for name, value in values.items() if value is None]:
            del inner[name]
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def test_released_settings_are_honoured(spoiled: Callable[..., Path], tmp_path: Path) -> None:
    folder = spoiled(max_dynamic_patch=12, use_thumbnail=False, auto_map={"AutoModel": "x.Y"})
    (folder / "preprocessor_config.json").write_text(json.dumps({"use_msac": True, "image_mean": [0.5, 0.5, 0.5]}))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_p": 0.5, "eos_token_id": 7}))
    out = import_released(folder, tmp_path / "out", overrides=[("image.max_total_tiles", 20)])
    spec, model = load_processor(out).image_spec, load_model(out)
    assert (spec.mode, spec.tile_size, spec.max_tiles, spec.max_total_tiles) == ("tile", 16, 12, 20)
    assert (spec.thumbnail, spec.multi_scale) == (False, True)
    assert list(model.config.vision_config.image_mean) == [0.5, 0.5, 0.5]
    assert model.generation_config.top_p == 0.5 and 7 not in model.generation_config.eos_token_id
    assert load_processor(out).template == "sail_vl2"


def test_a_folder_without_tiling_shows_one_tile(spoiled: Callable[..., Path], tmp_path: Path) -> None:
    out = import_released(spoiled(dynamic_image_size=False), tmp_path / "out")
    assert load_processor(out).image_spec.grids(30, 60) == ((4, 4),)


def test_an_earlier_layer_is_selected_and_those_behind_it_stay(
    spoiled: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model = load_model(import_released(spoiled(select_layer=-2), tmp_path / "out"))
    assert len(model.vision.layers) == 1
    assert "vision weights were not needed: layers.1.down.weight" in caplog.text


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (None, {"ps_version": "v1"}, "ps_version='v1' is not supported, 'v2' alone"),
        (None, {"pad2square": True}, "pad2square=True is not supported"),
        (None, {"use_llm_lora": 16}, "use_llm_lora=16 is not supported"),
        (None, {"downsample_ratio": 0.3}, "downsample_ratio=0.3 is not one over a whole number"),
        (None, {"force_image_size": 32}, "force_image_size=32 is not the vision model's image_size"),
        (None, {"template": "internvl2_5"}, "template='internvl2_5' is none of"),
        (
            None,
            {"rope_of_tiles": 2},
            "config.json: the key 'rope_of_tiles'=2 is not known; it may change",
        ),
        (None, {"max_dynamic_patches": 9}, "'max_dynamic_patches'=9 is not known; did you mean 'max_dynamic_patch'"),
        (None, {"max_dynamic_patch": "12"}, "max_dynamic_patch='12' should be a whole number from 1"),
        (None, {"max_dynamic_patch": True}, "max_dynamic_patch=True should be a whole number from 1"),
        (None, {"min_dynamic_patch": 0}, "min_dynamic_patch=0 should be a whole number from 1"),
        (None, {"min_dynamic_patch": 9}, "min_tiles=9 and max_tiles=4 must be 1 <= min <= max"),
        (None, {"use_thumbnail": "no"}, "use_thumbnail='no' should be true or false"),
        (None, {"dynamic_image_size": 0}, "dynamic_image_size=0 should be true or false"),
        (None, {"select_layer": "-1"}, "select_layer='-1' should be a whole number"),
        (None, {"downsample_ratio": "0.5"}, "downsample_ratio='0.5' is not one over a whole number"),
        (None, {"template": ["sailvl-chat"]}, r"template=.*is none of"),
        (None, {"image_fold": 2}, "image_fold=2 is not supported"),
        (None, {"vision_config": None}, "vision_config is missing"),
        (
            None,
            {"model_type": "internvl_chat", "template": "internvl2_5"},
            "holds a 'internvl_chat' model, not a released SAIL-VL2",
        ),
        ("vision_config", {"model_type": "siglip"}, "the vision model_type='siglip' is none of aimv2"),
        ("vision_config", {"qkv_bias": True}, "biases on some of the vision model's matrices"),
        ("vision_config", {"num_channels": 1}, "num_channels=1 is not supported"),
        ("vision_config", {"window_size": 7}, "vision_config: the key 'window_size'=7 is not known"),
        ("vision_config", {"drop_path_rate": 0.1}, "drop_path_rate=0.1 is not supported, 0.0 alone"),
        ("vision_config", {"qk_normalization": True}, "qk_normalization=True is not supported"),
        ("vision_config", {"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5' should be a number above 0"),
        ("vision_config", {"qkv_bias": "no"}, "qkv_bias='no' should be true or false"),
        ("vision_config", {"hidden_size": True}, "hidden_size=True, not a whole number"),
        ("llm_config", {"mlp_biases": True}, "llm_config: the key 'mlp_biases'=True is not known"),
        ("vision_config", {"image_size": 15}, "image_size=15 is no multiple of patch_size=4"),
        ("vision_config", {"hidden_size": None}, "hidden_size=None, not a whole number"),
        ("vision_config", {"hidden_size": 20}, "vision weight"),
        ("llm_config", {"model_type": "a_stranger"}, "a_stranger"),
        ("llm_config", {"quantization_config": {"bits": 4}}, "quantised weights are not supported"),
        ("llm_config", {"num_hidden_layers": 3, "layer_types": None}, "lacks language weights: model.layers.2"),
    ],
)
def test_what_we_have_not_is_refused_by_its_field(
    spoiled: Callable[..., Path], tmp_path: Path, section: str | None, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_released(spoiled(section, **values), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mean": 0.5}, "image_mean=0.5 should be three numbers, one per channel"),
        ({"image_std": [0.5, "a", 1]}, "image_std=.* should be three numbers"),
        ({"max_dynamic_patch": 2.5}, "max_dynamic_patch=2.5 should be a whole number"),
        ({"use_msac": "yes"}, "use_msac='yes' should be true or false"),
        ({"sail_train": []}, r"sail_train=\[\] should be an object"),
        ({"sail_train": {"image": 3}}, "sail_train: image=3 should be an object"),
    ],
)
def test_settings_of_a_wrong_kind_are_refused_by_their_field(
    spoiled: Callable[..., Path], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    folder = spoiled()
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        import_released(folder, tmp_path / "out")


def test_inert_keys_of_older_versions_are_passed_over(
    released: Path, spoiled: Callable[..., Path], tmp_path: Path
) -> None:
    folder = spoiled("vision_config", chunk_size_feed_forward=0, id2label={"0": "a"}, is_native=False, use_head=False)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_image_token": 4, "image_fold": None, "output_attentions": False}
    config["llm_config"] |= {"typical_p": 1.0, "use_bfloat16": True, "rope_theta": 1e6, "_name_or_path": "/x"}
    (folder / "config.json").write_text(json.dumps(config))
    found, plain = (
        load_model(import_released(path, tmp_path / name)).state_dict()
        for path, name in ((folder, "out"), (released, "plain"))
    )
    assert found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)


def test_what_is_changed_in_an_exported_folder_by_its_own_names_counts(released: Path, tmp_path: Path) -> None:
    """Our settings beside them are for what the released format has no word for."""
    folder = Path(shutil.copytree(released, tmp_path / "changed"))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert settings["sail_train"]["image"]["min_tiles"] == 1
    settings |= {"min_dynamic_patch": 2, "max_dynamic_patch": 9, "use_thumbnail": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    spec = load_processor(import_released(folder, tmp_path / "out")).image_spec
    assert (spec.min_tiles, spec.max_tiles, spec.max_total_tiles, spec.thumbnail) == (2, 9, 9, False)
    for name in ("min_dynamic_patch", "max_dynamic_patch"):
        del settings[name]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "min_dynamic_patch": 3}))
    spec = load_processor(import_released(folder, tmp_path / "again")).image_spec
    assert (spec.min_tiles, spec.max_tiles, spec.max_total_tiles) == (3, 4, 6)


def test_sail_vl_1_6_is_read_by_its_own_name_and_with_its_language_model(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", "aimv2", model_type="qwen2", head_dim=4, max_position_embeddings=32_768)
    folder = export(run, tmp_path / "released", format="released")
    (folder / "preprocessor_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "internvl_chat", "architectures": ["SailVLModel"], "max_dynamic_patch": 12}
    config["llm_config"] |= {"attn_implementation": "flash_attention_2", "use_sliding_window": False}
    config["vision_config"]["_name_or_path"] = "/x/aimv2"
    (folder / "config.json").write_text(json.dumps(config))
    out = import_released(folder, tmp_path / "out")
    assert load_processor(out).image_spec.max_tiles == 12
    ids = torch.arange(6)[None]
    assert torch.equal(load_model(run)(input_ids=ids).logits, load_model(out)(input_ids=ids).logits)


def test_an_untied_output_layer_under_a_config_that_says_tied_is_not_dropped(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", "aimv2", tie_word_embeddings=False)
    folder = export(run, tmp_path / "released", format="released")
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lm_head differs from embed_tokens; set model.language.tie_word_embeddings="):
        import_released(folder, tmp_path / "out")
    out = import_released(folder, tmp_path / "out", overrides=[("language.tie_word_embeddings", False)])
    found, ours = weights(out), weights(run / "model")
    assert found.keys() == ours.keys() and all(torch.equal(found[name], ours[name]) for name in ours)


def test_an_override_of_a_value_as_if_it_were_a_section_is_refused(
    spoiled: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="model.template.x: template is a value, not a section"):
        import_released(spoiled(), tmp_path / "out", overrides=[("template.x", 1)])


@pytest.mark.parametrize(
    ("text", "message"), [("{", "config.json is not readable JSON"), ("[]", "config.json holds a list, not an object")]
)
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        import_released(tmp_path, tmp_path / "out")
