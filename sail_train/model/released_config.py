"""config.json of released folders <-> ours: SAIL-VL2's ("sailvl"), SAIL-VL-1.6's and AIMv2's.

Every field of theirs that says what the model computes or how its processor cuts images is read here; what we have not
is refused by its name, as is a key that nobody knows (`released_keys`), and the inert rest is left. Nothing of a
released config reaches transformers but the language model's values, which are its own.
Fields and defaults after SAIL-VL2's released code and processor (arXiv 2509.14033) and SAIL-VL-1.6's config.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from sail_train.model.config import LanguageConfig
from sail_train.model.folder import read_config
from sail_train.model.language import from_values, text_config
from sail_train.model.released_keys import (
    INERT_TOP,
    INERT_VISION,
    channels,
    check_keys,
    check_language_keys,
    flag,
    number,
    section,
    whole,
)

log = logging.getLogger(__name__)

OURS, RELEASED = "sail_vl", "sailvl"
_FORMER = "internvl_chat"
"""What SAIL-VL-1.5 and 1.6 call themselves, by the same fields and names; InternVL's own have another template."""
_AIMV2 = ("aimv2", "aimv2_vision_model")
TEMPLATES = {"sailvl-chat": "sail_vl2"}
"""Their name of a chat template -> ours."""

_PREPROCESSOR = "preprocessor_config.json"
KEPT = "sail_train"
"""Key of preprocessor_config.json under which our export leaves the processor's settings whole."""

_ONLY: dict[str, tuple[Any, str]] = {
    "ps_version": ("v2", "the first version of the pixel shuffle turns each tile by its diagonal"),
    "pad2square": (False, "images are resized, not padded"),
    "use_backbone_lora": (0, "merge the low-rank weights first"),
    "use_llm_lora": (0, "merge the low-rank weights first"),
    "image_fold": (None, "images are cut into tiles alone"),
}
"""The one value of a field that we have, which is also its default, and why not another."""
_VISION_ONLY: dict[str, tuple[Any, str]] = {
    "num_channels": (3, "images have three channels"),
    "attention_dropout": (0.0, "our encoder drops nothing"),
    "projection_dropout": (0.0, "our encoder drops nothing"),
    "dropout": (0.0, "our encoder drops nothing"),
    "drop_path_rate": (0.0, "our encoder drops nothing"),
    "hidden_act": ("silu", "AIMv2's MLP has SwiGLU"),
    "norm_type": ("rms_norm", "AIMv2's norms are RMSNorms"),
    "qk_normalization": (False, "our encoder does not normalise queries and keys"),
    "is_native": (False, "our encoder has learned positions, not sinusoids"),
}
_TOP = {
    "vision_config", "llm_config", "select_layer", "downsample_ratio", "template", "force_image_size", "use_msac",
    "dynamic_image_size", "min_dynamic_patch", "max_dynamic_patch", "use_thumbnail", *_ONLY, *INERT_TOP,
}  # fmt: skip
"""Keys of the whole model that are read, have one value, or are inert."""
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
_BIASES = ("qkv_bias", "use_bias", "mlp_bias", "attention_bias")
_VISION = {*_SIZES, *_BIASES, "rms_norm_eps", "initializer_range", *_VISION_ONLY, *INERT_VISION}
_TILING = {"min_dynamic_patch", "max_dynamic_patch", "use_thumbnail", "use_msac"}
_NOT_LANGUAGE = {
    "architectures", "attn_implementation", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache",
    "use_bfloat16", "experts_implementation",
}  # fmt: skip
"""Keys of their language config that are about its code, its file or its kernels."""
_TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id"}
"""Ours are the processor's."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError if it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not an object")
    return values


def part_config(folder: Path) -> dict[str, Any]:
    """config.json of any folder that a part may come from; a released one's as far as it has ours, in our words."""
    path = folder / "config.json"
    values = read_json(path)
    if is_released(values):
        model = model_values(folder)
        language = _language_values(values, path)
        merge = model["adapter"]["merge_size"]
        return {
            "model_type": OURS,
            "vision_config": model["vision"],
            "text_config": language,
            "merge_size": merge,
            "reduction": "pixel_shuffle",
            "adapter_hidden_size": None,
        }
    if values.get("model_type") in _AIMV2:
        return {"model_type": OURS, "vision_config": _vision(values.get("vision_config", values), path)}
    return read_config(folder)


def is_released(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a whole released model."""
    kind = values.get("model_type")
    return kind == RELEASED or (kind == _FORMER and TEMPLATES.get(str(values.get("template"))) is not None)


def model_values(folder: Path) -> dict[str, Any]:
    """Values of `ModelConfig` of a released SAIL-VL2 folder; ValueError names the field that we have not."""
    path = folder / "config.json"
    values = read_json(path)
    if not is_released(values):
        kind = values.get("model_type")
        raise ValueError(f"{folder} holds a {kind!r} model, not a released SAIL-VL2 ({RELEASED!r}) or SAIL-VL-1.6")
    _check_only(values, _ONLY, path)
    check_keys(values, _TOP, str(path))
    settings, own, where = _settings(folder), saved_settings(folder), f"{folder / _PREPROCESSOR}: {KEPT}"
    vision = _vision(_section(values, "vision_config", path), path)
    vision["select_layer"] = whole(values, "select_layer", -4, path, least=None)  # the released code's default
    vision |= normalisation(folder)
    ratio = values.get("downsample_ratio", 0.5)
    merge = round(1 / ratio) if isinstance(ratio, float) and 0 < ratio <= 1 else 0
    if not merge or abs(merge * ratio - 1) > 1e-6:
        raise ValueError(f"{path}: downsample_ratio={ratio!r} is not one over a whole number")
    template = values.get("template", "sailvl-chat")
    return {
        "vision": vision,
        "adapter": {"merge_size": merge, "reduction": "pixel_shuffle"},
        "language": _language(values, path),
        "image": _image(values, settings, vision, path, own=section(own, "image", where)),
        "video": {"mode": "uniform", "num_frames": 16, **section(own, "video", where)},
        "template": TEMPLATES.get(str(template), str(template)),
    }


def saved_settings(folder: Path) -> dict[str, Any]:
    """Our processor's settings as our export left them, for what the released format has no words for; else none."""
    return section(_settings(folder), KEPT, folder / _PREPROCESSOR)


def normalisation(folder: Path) -> dict[str, list[float]]:
    """`image_mean` and `image_std` of a folder's preprocessor_config.json, or, as newer versions of transformers write
    them, of its processor_config.json, where it has them."""
    settings, where = _settings(folder), folder / _PREPROCESSOR
    if not settings and (path := folder / "processor_config.json").is_file():
        settings, where = section(read_json(path), "image_processor", path), path
    if not flag(settings, "do_normalize", True, where):
        return {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return {name: channels(settings, name, where) for name in ("image_mean", "image_std") if name in settings}


def released_values(config: PretrainedConfig, image: Mapping[str, Any], template: str, dtype: str) -> dict[str, Any]:
    """config.json of a released folder for a model of ours; ValueError names what has no word there.

    `config` is a `SailVLConfig`, `image` the processor's `ImageSpec` as a mapping.
    """
    vision, text = config.vision_config, config.text_config
    wanted = {
        "vision.type": (vision.type, "aimv2"),
        "vision.norm": (vision.norm, "rms"),
        "vision.gated_mlp": (vision.gated_mlp, True),
        "vision.hidden_act": (vision.hidden_act, "silu"),
        "vision.final_norm": (vision.final_norm, True),
        "vision.select_layer": (vision.select_layer, -1),
        "adapter.reduction": (config.reduction, "pixel_shuffle"),
        "adapter.hidden_size": (config.adapter_hidden_size or text.hidden_size, text.hidden_size),
        "image.mode": (image["mode"], "tile"),
        "image.tile_size": (image["tile_size"], vision.position_grid * vision.patch_size),
        "template": (template, "sail_vl2"),
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            raise ValueError(f"{name}={found!r} cannot be written in the released format, which has {needed!r} alone")
    language = {k: v for k, v in text.to_dict().items() if k not in _NOT_LANGUAGE and not k.startswith("_")}
    return {
        "architectures": ["SAILVLModel"],
        "model_type": RELEASED,
        "torch_dtype": dtype,
        "downsample_ratio": 1 / config.merge_size,
        "dynamic_image_size": True,
        "force_image_size": image["tile_size"],
        "min_dynamic_patch": image["min_tiles"],
        "max_dynamic_patch": image["max_tiles"],
        "use_thumbnail": image["thumbnail"],
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": vision.select_layer,
        "template": "sailvl-chat",
        "tie_word_embeddings": text.tie_word_embeddings,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "vision_config": {
            "model_type": "aimv2",
            "architectures": ["AIMv2Model"],
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "num_channels": 3,
            "patch_size": vision.patch_size,
            "image_size": vision.position_grid * vision.patch_size,
            "rms_norm_eps": vision.norm_eps,
            "qkv_bias": vision.bias,
            "use_bias": vision.bias,
            "attention_dropout": 0.0,
            "projection_dropout": 0.0,
            "initializer_range": vision.initializer_range,
        },
        "llm_config": {**language, "architectures": text.architectures or [_causal(text)], "torch_dtype": dtype},
    }


def _causal(text: PretrainedConfig) -> str:
    """Name of the causal class of a language model's config."""
    return type(text).__name__.removesuffix("Config") + "ForCausalLM"


def _section(values: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    if not isinstance(section := values.get(name), Mapping):
        raise ValueError(f"{path}: {name} is missing, which a released SAIL-VL2 has")
    return dict(section)


def _check_only(values: Mapping[str, Any], only: Mapping[str, tuple[Any, str]], path: Path) -> None:
    for name, (needed, why) in only.items():
        if (found := values.get(name, needed)) != needed:
            raise ValueError(f"{path}: {name}={found!r} is not supported, {needed!r} alone: {why}")


def _vision(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Values of `VisionConfig` from AIMv2's config, SAIL's and Apple's or transformers'."""
    if (kind := values.get("model_type", _AIMV2[0])) not in _AIMV2:
        raise ValueError(f"{path}: the vision model_type={kind!r} is none of {', '.join(_AIMV2)}")
    _check_only(values, _VISION_ONLY, path)
    where = f"{path}: vision_config"
    check_keys(values, _VISION, where)
    for name in _SIZES:
        if isinstance(values.get(name), bool) or not isinstance(values.get(name), int) or values[name] < 1:
            raise ValueError(f"{path}: the vision config has {name}={values.get(name)!r}, not a whole number")
    biases = {flag(values, name, False, where) for name in _BIASES if name in values}
    if len(biases) > 1:
        raise ValueError(f"{path}: biases on some of the vision model's matrices alone are not supported")
    if values["image_size"] % values["patch_size"]:
        raise ValueError(
            f"{path}: image_size={values['image_size']} is no multiple of patch_size={values['patch_size']}"
        )
    return {
        "type": "aimv2",
        **{name: values[name] for name in _SIZES if name != "image_size"},
        "position_grid": values["image_size"] // values["patch_size"],
        "norm": "rms",
        "norm_eps": number(values, "rms_norm_eps", 1e-5, where),
        "gated_mlp": True,
        "hidden_act": "silu",
        "bias": biases == {True},
        "final_norm": True,
        **(
            {"initializer_range": number(values, "initializer_range", 0.02, where)}
            if "initializer_range" in values
            else {}
        ),
    }


def _image(
    values: Mapping[str, Any],
    settings: Mapping[str, Any],
    vision: Mapping[str, Any],
    path: Path,
    *,
    own: Mapping[str, Any],
) -> dict[str, Any]:
    """Values of `ImageConfig`. The released processor's settings go before the model's, and both before `own`, which is
    for what neither has a word for."""
    size = values.get("force_image_size") or vision["position_grid"] * vision["patch_size"]
    if size != vision["position_grid"] * vision["patch_size"]:
        raise ValueError(f"{path}: force_image_size={size} is not the vision model's image_size")
    read = {**values, **settings}
    for name in sorted(_TILING & values.keys() & settings.keys()):
        if values[name] != settings[name]:
            log.info("%s=%r of %s goes before %r of %s", name, settings[name], _PREPROCESSOR, values[name], path)
    tiling = flag(values, "dynamic_image_size", True, path)
    tiles = whole(read, "max_dynamic_patch", 10, path) if tiling else 1
    return {
        **{k: v for k, v in own.items() if k not in ("patch_size", "merge_size")},
        "mode": "tile",
        "tile_size": size,
        "min_tiles": whole(read, "min_dynamic_patch", 1, path) if tiling else 1,
        "max_tiles": tiles,
        "max_total_tiles": max(whole(own, "max_total_tiles", 64, path), tiles),
        "thumbnail": flag(read, "use_thumbnail", True, path),
        "multi_scale": flag(read, "use_msac", False, path),
    }


def _settings(folder: Path) -> dict[str, Any]:
    """What the released processor was saved with."""
    path = folder / _PREPROCESSOR
    return read_json(path) if path.is_file() else {}


def _language_values(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Their language config as transformers knows it."""
    language = _section(values, "llm_config", path)
    if language.get("quantization_config"):
        raise ValueError(f"{path}: llm_config.quantization_config is set; quantised weights are not supported")
    check_language_keys(language, f"{path}: llm_config")
    return {
        key: value
        for key, value in language.items()
        if key not in _NOT_LANGUAGE and key != "quantization_config" and not key.startswith("_")
    }


def _language(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Values of `LanguageConfig`; what it has no field for goes into `model`, where it is not as it would be anyway."""
    theirs = from_values(_language_values(values, path), f"{path}: llm_config")
    found = {f.name: getattr(theirs, f.name) for f in fields(LanguageConfig) if hasattr(theirs, f.name)}
    rope = dict(theirs.to_dict().get("rope_parameters") or {})
    found["rope_theta"] = rope.pop("rope_theta", 10_000.0)
    found["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    ours = text_config(LanguageConfig(**found), eos_token_id=0, vocab_size=found["vocab_size"]).to_dict()
    extras = {
        name: value
        for name, value in theirs.to_dict().items()
        if name in ours and value != ours[name] and name not in _NOT_LANGUAGE | _TOKENS | {"rope_parameters"}
    }
    found["model"] = {name: value for name, value in extras.items() if name not in asdict(LanguageConfig(**found))}
    return found
