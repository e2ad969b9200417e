from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from sail_train.model.build import load_model, save_model
from sail_train.model.folder import read_config, resolve, tensors, weight_files
from sail_train.model.hf_config import SailVLConfig
from sail_train.model.vlm import SailVLForConditionalGeneration


@pytest.fixture
def folder(model: SailVLForConditionalGeneration, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def test_a_run_directory_means_its_model(folder: Path) -> None:
    assert resolve(folder) == resolve(folder.parent) == folder


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is not a directory"):
        resolve(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither config.json nor model/config.json"):
        resolve(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="config.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("where", ["", "text_config", "vision_config"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModel": "evil.Model"}),
        ("_attn_implementation_internal", "evil/kernel"),
        ("_attn_implementation", "evil/kernel"),
        ("attn_implementation", "evil/kernel"),
        ("experts_implementation", "evil/kernel"),
        ("_experts_implementation_internal", "evil/kernel"),
        ("quantization_config", {"quant_method": "evil"}),
    ],
)
def test_keys_that_make_transformers_load_code_are_refused(folder: Path, where: str, key: str, value: Any) -> None:
    edit(folder, lambda values: (values[where] if where else values).update({key: value}))
    with pytest.raises(ValueError, match=f"the key '{key}' can make transformers load code"):
        load_model(folder)
    AutoConfig.register("sail_vl", SailVLConfig, exist_ok=True)
    with pytest.raises(ValueError, match=f"the key '{key}' can make transformers load code"):
        AutoConfig.from_pretrained(folder)


def test_our_own_configs_pass(folder: Path) -> None:
    assert read_config(folder)["model_type"] == "sail_vl"


def test_a_language_model_off_the_list_is_refused(folder: Path) -> None:
    edit(folder, lambda values: values["text_config"].update(model_type="gpt2"))
    with pytest.raises(ValueError, match="text_config.model_type='gpt2' must be one of qwen3"):
        load_model(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin are pickles, which are not read"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="has no model.safetensors or model.safetensors.index.json"):
        weight_files(folder)


def test_damaged_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="model.safetensors cannot be read"):
        list(tensors(folder))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "missing.safetensors"])
def test_shards_lie_in_the_folder_itself(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="which is not in the folder"):
        load_model(folder)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="is not an index of shards"):
        weight_files(folder)
