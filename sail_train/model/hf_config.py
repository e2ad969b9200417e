"""config.json of a sail_vl model folder, as transformers configs.

A folder may come from a stranger: keys that make transformers fetch or run code (hub kernels through
`attn_implementation`) are refused, as is a language model that is not transformers' own. `auto_map`, with which a
folder brings its own code for those who lack ours, is never read.
What callers of `from_pretrained` pass to any model is taken: transformers' own attentions by name (ours is
`attention`, theirs changes nothing), `use_cache`, which is the language model's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from sail_train.model.language import check_config, from_values

_INERT_PRIVATE_KEYS = ("_name_or_path", "_commit_hash")
_BUILT_IN = re.compile(r"(paged\|)?(eager|sdpa|flex_attention|flash_attention_\d|sail_packed\w*)")
"""Attentions that are no kernel from a hub: transformers' and ours."""
_CODE_KEYS = ("attn_implementation", "experts_implementation", "quantization_config", "custom_pipelines")


class SailVLVisionConfig(PretrainedConfig):
    """The vision encoder; see `model.config.VisionConfig` for the fields."""

    model_type = "sail_vl_vision"
    base_config_key = "vision_config"

    type: str = "native"
    hidden_size: int = 1536
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 12
    patch_size: int = 14
    norm: str = "rms"
    norm_eps: float = 1e-5
    gated_mlp: bool = True
    hidden_act: str = "silu"
    bias: bool = False
    final_norm: bool = True
    select_layer: int = -1
    rope_theta: float = 10_000.0
    position_grid: int = 32
    image_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    initializer_range: float = 0.02
    model: Any = None

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def depth(self) -> int:
        """Layers whose output reaches the features."""
        return self.num_hidden_layers + 1 + self.select_layer


class SailVLConfig(PretrainedConfig):
    """The whole model: `vision_config`, the adapter's two sizes, `text_config`, and the image token."""

    model_type = "sail_vl"
    sub_configs = {"vision_config": SailVLVisionConfig, "text_config": AutoConfig}

    vision_config: Any = None
    text_config: Any = None
    merge_size: int = 2
    reduction: str = "pixel_shuffle"
    adapter_hidden_size: int | None = None
    """None: the language model's hidden size."""
    image_token_id: int = 151671
    attention: str = "auto"
    """Kernel of packed attention."""

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs = without_auto_map(kwargs)
        check_attention(kwargs.pop("attn_implementation", None))
        refuse_code(kwargs)
        self.vision_config = _vision_config(self.vision_config)
        self.text_config = _text_config(self.text_config)
        super().__post_init__(**kwargs)

    @property
    def use_cache(self) -> bool:
        """Whether the language model keeps keys and values, unless a call says otherwise."""
        return bool(self.text_config.use_cache)

    @use_cache.setter
    def use_cache(self, value: bool) -> None:
        self.text_config.use_cache = value


def check_attention(value: Any) -> None:
    """ValueError if an `attn_implementation`, one name or one for each part, is none of transformers' own."""
    for name in value.values() if isinstance(value, Mapping) else [value]:
        if name is None or (isinstance(name, str) and _BUILT_IN.fullmatch(name)):
            continue
        if "/" in str(name):
            raise ValueError(
                f"attn_implementation={name!r}: the key 'attn_implementation' can make transformers load code; "
                "leave it out, config.attention says which kernel is taken"
            )
        raise ValueError(
            f"attn_implementation={name!r} is none of transformers' (eager, sdpa, flex_attention, flash_attention_2); "
            "leave it out, config.attention says which kernel is taken"
        )


def refuse_code(values: Mapping[str, Any], where: str = "config.json") -> None:
    """ValueError if a config, at any depth, holds a key by which transformers would fetch or run code."""
    for key, value in values.items():
        private = key.startswith("_") and key not in _INERT_PRIVATE_KEYS
        if (private or key in _CODE_KEYS) and value is not None:
            raise ValueError(f"{where}: the key {key!r} can make transformers load code; remove it to use the folder")
        if isinstance(value, Mapping):
            refuse_code(value, f"{where}: {key}")


def without_auto_map(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the key, at any depth, that says which files of the folder have its code."""
    return {
        key: without_auto_map(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key != "auto_map"
    }


def _vision_config(values: Any) -> SailVLVisionConfig:
    if isinstance(values, SailVLVisionConfig):
        return values
    values = without_auto_map(values or {})
    refuse_code(values, "vision_config")
    return SailVLVisionConfig(**values)


def _text_config(values: Any) -> PretrainedConfig:
    if isinstance(values, PretrainedConfig):
        return values
    values = without_auto_map(values or {})
    refuse_code(values, "text_config")
    text = from_values({"model_type": "qwen3", **values}, "text_config")
    check_config(text, "text_config")
    return text
