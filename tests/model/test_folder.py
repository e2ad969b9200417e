from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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


@pytest.mark.parametrize(
    "asked",
    [
        {"attn_implementation": "sdpa"},
        {"attn_implementation": "eager"},
        {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": {"": "sdpa", "text_config": "eager"}},
        {"use_cache": True, "dtype": "auto"},
        {"torch_dtype": torch.bfloat16, "device_map": "cpu"},
    ],
    ids=str,
)
def test_what_callers_of_from_pretrained_pass_to_any_model_is_taken(folder: Path, asked: dict[str, Any]) -> None:
    if "device_map" in asked:
        pytest.importorskip("accelerate")
    expected = load_model(folder, dtype="bfloat16" if "torch_dtype" in asked else "float32")
    found = SailVLForConditionalGeneration.from_pretrained(folder, **asked)
    ids = torch.arange(7)[None]
    assert torch.equal(found(input_ids=ids).logits, expected(input_ids=ids).logits)
    with_config = {name: value for name, value in asked.items() if name != "use_cache"}
    SailVLForConditionalGeneration.from_pretrained(folder, config=expected.config, **with_config)


def test_a_caller_turns_the_cache_of_the_language_model_off(folder: Path) -> None:
    off = SailVLForConditionalGeneration.from_pretrained(folder, use_cache=False)
    assert off.config.text_config.use_cache is off.config.use_cache is False
    assert off(input_ids=torch.arange(3)[None]).past_key_values is None
    off.config.use_cache = True
    assert off(input_ids=torch.arange(3)[None]).past_key_values is not None


@pytest.mark.parametrize("name", ["evil/kernel", "paged|evil/kernel", "evil/kernel@main:run"])
def test_a_kernel_from_a_hub_is_refused_however_it_is_asked_for(folder: Path, name: str) -> None:
    config = load_model(folder).config
    for options in ({}, {"config": config}):
        with pytest.raises(ValueError, match="the key 'attn_implementation' can make transformers load code"):
            SailVLForConditionalGeneration.from_pretrained(folder, attn_implementation=name, **options)
        with pytest.raises(ValueError, match="attn_implementation='sdap' is none of transformers'"):
            SailVLForConditionalGeneration.from_pretrained(folder, attn_implementation="sdap", **options)


def test_our_own_configs_pass(folder: Path) -> None:
    assert read_config(folder)["model_type"] == "sail_vl"


@pytest.mark.parametrize("where", ["", "text_config", "vision_config"])
def test_code_that_a_folder_brings_along_is_never_run(folder: Path, tmp_path: Path, where: str) -> None:
    ran = tmp_path / "ran"
    poison = f"open({str(ran)!r}, 'w').close()\nclass Model: ...\nclass Config: ...\n"
    (folder / "evil.py").write_text(poison)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(poison)
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
    edit(folder, lambda values: (values[where] if where else values).update(auto_map=auto_map))
    assert "auto_map" not in json.dumps(read_config(folder))
    loaded = load_model(folder)
    assert type(loaded) is SailVLForConditionalGeneration and not hasattr(loaded.config, "auto_map")
    AutoConfig.register("sail_vl", SailVLConfig, exist_ok=True)
    assert type(AutoConfig.from_pretrained(folder)) is SailVLConfig
    assert not ran.exists() and "evil" not in sys.modules
    save_model(loaded, tmp_path / "again")
    assert "auto_map" not in (tmp_path / "again" / "config.json").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("evil", "text_config.model_type='evil' is no causal language model of transformers"),
        ("qwen33", "did you mean 'qwen3'"),
        ("mamba", "'mamba' does not let its attention be replaced, which packing needs"),
        ("gemma3", "'gemma3' has several parts of its own"),
    ],
)
def test_a_language_model_that_is_not_transformers_own_or_cannot_be_packed_is_refused(
    folder: Path, name: str, message: str
) -> None:
    edit(folder, lambda values: values["text_config"].update(model_type=name))
    with pytest.raises(ValueError, match=message):
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
