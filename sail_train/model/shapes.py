"""Does a folder's part have the shapes that the config says? Checked before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sail_train.model.config import LanguageConfig, ModelConfig
from sail_train.model.folder import read_config, tensor_names
from sail_train.model.hf_config import SailVLConfig
from sail_train.model.language import from_values, text_config
from sail_train.model.released_config import normalisation, part_config
from sail_train.model.vision.foreign_weights import check_foreign

_NOT_SHAPES = {
    "path", "tokenizer", "initializer_range", "max_position_embeddings", "vocab_size", "rope_scaling", "model",
    "router_aux_loss_coef",
}  # fmt: skip
"""What a stage may set anew, or what is compared in its own way."""


def check_shapes(config: ModelConfig, folder: Path, part: str) -> None:
    """ValueError if a folder's part is not of the config's shapes; names the field and both values."""
    foreign = part == "vision" and config.vision.type == "transformers"
    values = read_config(folder) if foreign else part_config(folder)
    if part == "language":
        _check_language(config.language, _has_language(values, folder), folder)
        return
    if part == "vision":
        _agree(asdict(config.vision), normalisation(folder), part, folder)
    if foreign:
        check_foreign(config.vision, values, folder)
        if values.get("model_type") != SailVLConfig.model_type:
            return
    if values.get("model_type") != SailVLConfig.model_type:
        raise ValueError(
            f"{folder} holds a {values.get('model_type')!r} model; a {part} part comes from a sail_vl one"
            + (_foreign_hint(values.get("model_type")) if part == "vision" else "")
        )
    if part == "vision":
        _agree(asdict(config.vision), values.get("vision_config", {}), part, folder)
    else:
        wanted = {"merge_size": config.adapter.merge_size, "adapter_hidden_size": config.adapter.hidden_size}
        _agree({**wanted, "reduction": config.adapter.reduction}, values, part, folder)


def language_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's config in config.json of a sail_vl folder or of a plain one."""
    return dict(values.get("text_config", {}) if values.get("model_type") == SailVLConfig.model_type else values)


def _has_language(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`language_values`; ValueError if the folder has no language model."""
    found = language_values(values)
    kind = found.get("model_type")
    if not kind or (_is_vision(kind) and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        what = f"a {kind!r} model" if kind else "a vision encoder"
        raise ValueError(f"{folder} holds {what}, which has no language part; is it the one for vision=?")
    return found


def _is_vision(kind: Any) -> bool:
    """Whether transformers has a model of images, alone or beside one of texts, of that name."""
    return any(
        name in CONFIG_MAPPING
        and CONFIG_MAPPING[name] in MODEL_MAPPING
        and getattr(MODEL_MAPPING[CONFIG_MAPPING[name]], "main_input_name", "") == "pixel_values"
        for name in (kind, f"{kind}_vision_model")
    )


def _foreign_hint(kind: Any) -> str:
    """How a vision model that transformers has is taken."""
    name = next((name for name in (f"{kind}_vision_model", kind) if name in CONFIG_MAPPING), None)
    if name is None or not _is_vision(name):
        return ""
    return f"; set model.vision.type=transformers and model.vision.model.model_type={name}"


def _check_language(config: LanguageConfig, values: Mapping[str, Any], folder: Path) -> None:
    _agree({"model_type": config.model_type}, values, "language", folder)
    found = from_values(values, str(folder / "config.json"))
    wanted = text_config(config, eos_token_id=0, vocab_size=1)
    names = (asdict(config).keys() | config.model.keys() | {"norm_topk_prob", "decoder_sparse_step"}) - _NOT_SHAPES
    if found.tie_word_embeddings and not config.tie_word_embeddings:
        if any(name.endswith("lm_head.weight") for name in tensor_names(folder)):
            names.remove("tie_word_embeddings")  # the folder's config says tied, its weights are not
    _agree(_values(wanted, names), _values(found, names), "language", folder)
    ours, theirs = _rope(wanted), _rope(found)
    _agree({"rope_theta": ours.get("rope_theta")}, theirs, "language", folder)
    if theirs.get("rope_type", "default") != "default" and not config.rope_scaling:
        raise ValueError(
            f"{folder} was trained with rope_parameters={theirs}, the config has none; set language.rope_scaling"
        )


def _agree(wanted: Mapping[str, Any], found: Mapping[str, Any], part: str, folder: Path) -> None:
    for name in sorted(wanted.keys() - _NOT_SHAPES):
        if name in found and _plain(found[name]) != _plain(wanted[name]):
            raise ValueError(f"{part}.{name}={wanted[name]} in the config, {found[name]} in {folder}; they must agree")


def _values(text: PretrainedConfig, names: set[str]) -> dict[str, Any]:
    """Those of `names` that the config has, under our names for them."""
    return {name: getattr(text, name) for name in names if hasattr(text, name)}


def _rope(text: PretrainedConfig) -> dict[str, Any]:
    return dict(text.to_dict().get("rope_parameters") or {})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
