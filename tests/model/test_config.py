from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from sail_train.config import to_dataclass, to_mapping
from sail_train.model.config import LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.names import part_of
from sail_train.model.vlm import SailVLForConditionalGeneration

VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
LANGUAGE = {**VISION, "num_key_value_heads": 1}


def test_a_config_survives_the_way_to_yaml_and_back(make_config: Callable[..., ModelConfig]) -> None:
    config = make_config()
    assert to_dataclass(ModelConfig, to_mapping(config)) == config
    assert config.image_spec.unit == 8 and config.image_spec.max_pixels == 4096


def test_configs_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, sail_train.model.config, sail_train.model.names, sail_train.processor.config;"
        "sys.exit(bool({'torch', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": {**VISION, "hidden_size": 12}}, "hidden_size=12 must be a multiple of 4 x num_attention_heads=8"),
        ({"vision": {**VISION, "image_mean": [0.5]}}, r"image_mean=\[0.5\] must have three values"),
        ({"vision": {**VISION, "image_std": [0.5]}}, r"image_std=\[0.5\] must have three values"),
        ({"language": {**LANGUAGE, "num_key_value_heads": 3}}, "must be a multiple of num_key_value_heads=3"),
        ({"language": {**LANGUAGE, "model_type": "qwen3_moe"}}, "'qwen3_moe' needs num_experts, which is None"),
        (
            {"language": {**LANGUAGE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}},
            "'qwen3' has no num_experts, which is 4; set model_type=qwen3_moe",
        ),
        ({"language": {**LANGUAGE, "num_experts": 4}}, "a mixture of experts needs all three, a dense model none"),
        (
            {
                "language": {
                    **LANGUAGE,
                    "model_type": "qwen3_moe",
                    "num_experts": 2,
                    "num_experts_per_tok": 4,
                    "moe_intermediate_size": 8,
                }
            },
            "num_experts_per_tok=4 exceeds num_experts=2",
        ),
        ({"language": {**LANGUAGE, "router_aux_loss_coef": -1.0}}, "router_aux_loss_coef=-1.0 must be 0"),
        ({"image": {"max_pixels": 100}}, "max_pixels=100 is less than one token"),
        ({"language": {**LANGUAGE, "hiden_size": 3}}, "language.hiden_size: unknown key; did you mean 'hidden_size'"),
    ],
)
def test_a_wrong_value_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_dataclass(ModelConfig, {"vision": VISION, "language": LANGUAGE, **change})


def test_the_tokenizer_comes_from_its_own_folder_or_the_language_models() -> None:
    assert LanguageConfig(**LANGUAGE, tokenizer="t", path="p").tokenizer_path == "t"
    assert LanguageConfig(**LANGUAGE, path="p").tokenizer_path == "p"
    with pytest.raises(ValueError, match="language.tokenizer and language.path are both null"):
        _ = LanguageConfig(**LANGUAGE).tokenizer_path
    assert VisionConfig(**VISION).head_dim == 8


def test_every_parameter_belongs_to_one_part(model: SailVLForConditionalGeneration) -> None:
    parts = {part_of(name) for name, _ in model.named_parameters()}
    assert parts == {"vision", "adapter", "language"}
    assert {part_of(f"vlm.{name}") for name, _ in model.named_parameters()} == parts


def test_a_parameter_without_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match="'head.weight' belongs to no part"):
        part_of("head.weight")
