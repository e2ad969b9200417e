"""From `VisionConfig.model` to one of transformers' own vision models: its config, checked, and the bare module.

Only architectures that transformers itself has are built, never code from a folder. What would not give one feature
per patch is refused with the reason: hierarchical models, models that ask for more than pixels. Dropout and the like
are off: a picture has the same features in training as in generation.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from sail_train.config import nearest
from sail_train.model.config import VisionConfig
from sail_train.model.hf_config import SailVLVisionConfig, refuse_code, without_auto_map

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
"""Fields of the vision config that the foreign config takes from there."""

UNUSED = ("vision_use_head", "use_head", "use_mask_token")
"""Switches of parts that features do not pass through: weights that would never get a gradient."""
_JITTER = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
"""DINOv3's augmentations of positions in training."""
_POOLED_ONLY = {"clip_vision_model": "post_layernorm"}
"""Modules of such parts that have no switch."""
_INPUTS = {"pixel_values", "pixel_attention_mask", "spatial_shapes", "interpolate_pos_encoding", "bool_masked_pos"}
_OPTIONS = {"self", "kwargs", "attention_mask", "head_mask", "output_attentions", "output_hidden_states", "return_dict"}


def foreign_config(config: SailVLVisionConfig | VisionConfig) -> PretrainedConfig:
    """The model's own config; ValueError if transformers has no such vision model or the values do not fit it."""
    values = without_auto_map(config.model or {})
    refuse_code(values, "vision.model")
    name = values.pop("model_type", None)
    kind = _config_class(name)
    for field, value in _sizes(config, kind, name).items():
        if field in values and _plain(values[field]) != value:
            raise ValueError(f"vision.model.{field}={values[field]}, and {value} by vision's sizes; leave it out there")
        values[field] = value
    if hasattr(kind(), "initializer_range"):
        values.setdefault("initializer_range", config.initializer_range)
    values |= _settled(values, kind)
    try:
        return kind(**values)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"vision.model is no config of {name!r}: {error}") from error


def build_foreign(config: SailVLVisionConfig) -> PreTrainedModel:
    """The model, with weights as transformers draws them; ValueError if it is not one of pixels alone."""
    own = foreign_config(config)
    kind: Any = MODEL_MAPPING[type(own)]
    if extra := inspect.signature(kind.forward).parameters.keys() - _INPUTS - _OPTIONS:
        raise ValueError(
            f"vision.model.model_type={own.model_type!r} asks for {', '.join(sorted(extra))}, not for pixels alone"
        )
    options: dict[str, Any] = {}
    if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        options["add_pooling_layer"] = False
    model = kind(own, **options)
    if own.model_type in _POOLED_ONLY:
        setattr(model, _POOLED_ONLY[own.model_type], nn.Identity())
    return model


def draws(field: str) -> bool:
    """Whether a config's field is of something random in training."""
    return field in _JITTER or "dropout" in field or "drop_path" in field


def _config_class(name: Any) -> type[PretrainedConfig]:
    if name not in CONFIG_MAPPING:
        near = nearest(str(name), CONFIG_MAPPING.keys())
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(f"vision.model.model_type={name!r} is no architecture of this transformers{hint}")
    kind = CONFIG_MAPPING[name]
    model = MODEL_MAPPING[kind] if kind in MODEL_MAPPING else None
    if model is None or isinstance(model, tuple) or model.main_input_name != "pixel_values":
        near = f"{name}_vision_model"
        hint = f"; did you mean {near!r}?" if near in CONFIG_MAPPING else ""
        raise ValueError(f"vision.model.model_type={name!r} is not a model of images alone{hint}")
    return kind


def _sizes(config: SailVLVisionConfig | VisionConfig, kind: type[PretrainedConfig], name: str) -> dict[str, int]:
    """The five sizes by the names that the foreign config has for them."""
    default = kind()
    sizes = {field: getattr(config, field) for field in SIZES}
    if not hasattr(default, "intermediate_size") and hasattr(default, "mlp_ratio"):
        inner = sizes.pop("intermediate_size")
        if inner % config.hidden_size:
            raise ValueError(
                f"vision.intermediate_size={inner} must be a multiple of hidden_size={config.hidden_size}: "
                f"{name!r} has an mlp_ratio"
            )
        sizes["mlp_ratio"] = inner // config.hidden_size
    for field in sizes:
        if not hasattr(default, field) or not isinstance(_plain(getattr(default, field)), int | float):
            raise ValueError(
                f"vision.model.model_type={name!r} has no {field}, or several: it does not keep one feature per patch"
            )
    return sizes


def _settled(values: Mapping[str, Any], kind: type[PretrainedConfig]) -> dict[str, Any]:
    """Parts that features do not pass through off, and so is what draws at random; ValueError if that is asked for."""
    settled: dict[str, Any] = dict.fromkeys(UNUSED, False)  # some models look for one that their config does not list
    for field, default in kind().to_dict().items():
        if draws(field):
            if values.get(field):
                raise ValueError(
                    f"vision.model.{field}={values[field]}: features would differ between training and generation; "
                    "leave it out"
                )
            if default:
                settled[field] = None if field in _JITTER else 0.0
    return settled


def _plain(value: Any) -> Any:
    """A number for a pair of equal ones, as some configs have for the sides of a patch."""
    if isinstance(value, list | tuple) and value and len(set(value)) == 1:
        return value[0]
    return value
