"""The language model: from its config to transformers' own class for it.

LanguageConfig -> transformers' config of that architecture -> its causal language model, with our output layer.
Any decoder in transformers' mapping that lets its attention be replaced; never a model whose code is not
transformers' own. What packing or the generator would silently get wrong is refused here, by its config; what a config
does not show, `model.probe` finds out on architectures other than `TESTED`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sail_train.config import suggestion
from sail_train.model.config import LanguageConfig
from sail_train.model.head import OutputHead

TESTED = ("qwen3", "qwen3_moe", "qwen2", "llama")
"""Architectures whose packed log-probs are compared with plain ones by tests; others are probed when built."""

_OURS = ("path", "tokenizer", "vocab_size", "rope_theta", "rope_scaling", "model")
"""Fields of LanguageConfig that transformers' config has not, or not by that name."""
_EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "router_aux_loss_coef")
_MOE = {"qwen3_moe": {"norm_topk_prob": True, "decoder_sparse_step": 1}}
"""What the released models of an architecture have, where transformers' default is another."""
_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of RoPE whose frequencies depend on how long the sequence is."""
_ROPE_LOGGER = "transformers.modeling_rope_utils"


def text_config(config: LanguageConfig, *, eos_token_id: int, vocab_size: int) -> PretrainedConfig:
    """transformers' config of the language model, with `vocab_size` rows of embeddings; ValueError by field."""
    name = architecture(config.model_type, "language.model_type")
    values = {key: value for key, value in asdict(config).items() if key not in _OURS}
    if config.num_experts is None:
        values = {key: value for key, value in values.items() if key not in _EXPERTS}
    elif not _knows(name, "moe_intermediate_size") and config.moe_intermediate_size != config.intermediate_size:
        raise ValueError(
            f"language.moe_intermediate_size={config.moe_intermediate_size}: experts of {name} are of "
            f"intermediate_size={config.intermediate_size}; set both alike"
        )
    values |= _MOE.get(name, {}) | _extras(config)
    with _rope_refused_by_name("language.rope_scaling"):
        made = from_values(
            values
            | {
                "vocab_size": vocab_size,
                "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta, **_scaling(config)},
                "eos_token_id": eos_token_id,
                "bos_token_id": None,
                "pad_token_id": None,  # else the embedding would zero that row's gradient, and its output when tied
            },
            "language",
        )
    check_config(made, "language")
    return made


def architecture(name: str, where: str) -> str:
    """`name`, if transformers has a decoder of it that we can use; ValueError otherwise. `where` names the field."""
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = suggestion(str(name), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ValueError(f"{where}={name!r} is no causal language model of transformers; {hint}")
    if CONFIG_MAPPING[name].sub_configs:
        raise ValueError(f"{where}={name!r} has several parts of its own; name the one that reads text alone")
    if not _model_class(CONFIG_MAPPING[name])._supports_attention_backend:
        raise ValueError(
            f"{where}={name!r} does not let its attention be replaced, which packing needs; "
            f"use another, e.g. {', '.join(TESTED)}"
        )
    return name


def from_values(values: Mapping[str, Any], where: str) -> PretrainedConfig:
    """transformers' config of `values`, `model_type` among them; ValueError if it does not take them."""
    rest = dict(values)
    name = architecture(rest.pop("model_type"), f"{where}.model_type")
    try:
        return CONFIG_MAPPING[name](**rest)
    except (KeyError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{where}: transformers' {name} config refuses its values: {error}") from error


def check_config(text: PretrainedConfig, where: str) -> None:
    """ValueError if packing or the generator's cache would compute something else than the model is."""
    values = text.to_dict()
    kind = (values.get("rope_parameters") or {}).get("rope_type")
    if kind in _BY_LENGTH:
        raise ValueError(
            f"{where}: rope_type={kind!r} turns a sample by the length of the whole packed row; use yarn, linear or "
            "llama3, which turn it by its own positions"
        )
    window, longest = values.get("sliding_window"), values.get("max_position_embeddings")
    if window and longest and window < longest:
        raise ValueError(
            f"{where}: sliding_window={window} is shorter than max_position_embeddings={longest}, and the generator's "
            f"cache has no window; set max_position_embeddings to at most {window}, or the window to null if the "
            "model was trained without one"
        )


def build_language(text: PretrainedConfig, *, never: int) -> Any:
    """The causal language model of a config, with our output layer, which never offers the token `never`."""
    language = _model_class(type(text))(text)
    head = language.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"text_config.model_type={text.model_type!r} has no linear output layer; use another")
    size, rows = head.in_features, head.out_features
    language.set_output_embeddings(OutputHead(size, rows, never=never, bias=head.bias is not None))
    for module in language.modules():
        if "inv_freq" in module._buffers:
            module.__class__ = _exact(type(module))
    return language


def decoder_layers(language: PreTrainedModel) -> list[str]:
    """Names of the classes of the language model's layers, which are not to be split over devices."""
    return sorted(language._no_split_modules or ())


def describe_experts(language: PreTrainedModel) -> str | None:
    """How the experts of a mixture are computed, for the log; None if the model is dense."""
    if not language.config.to_dict().get("num_experts_per_tok"):  # not by its parameters: they may be shared out
        return None
    chosen = language.config._experts_implementation
    said = "one grouped matrix product for all experts" if chosen == "grouped_mm" else "one expert after the other"
    return f"experts={chosen}: {said}"


def _model_class(config_class: type[PretrainedConfig]) -> Any:
    found = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    return found[0] if isinstance(found, tuple) else found


def _extras(config: LanguageConfig) -> dict[str, Any]:
    """`language.model`, if the architecture knows its keys and none is set by a field of ours."""
    ours = {field.name for field in fields(LanguageConfig)} | {"rope_parameters"}
    if wrong := sorted(config.model.keys() & ours):
        raise ValueError(f"language.model.{wrong[0]} is set by language itself; remove it there")
    for key in config.model:
        if not _knows(config.model_type, key):
            known = [field.name for field in fields(CONFIG_MAPPING[config.model_type])]
            raise ValueError(f"language.model.{key} is no value of {config.model_type}'s; {suggestion(key, known)}")
    return config.model


def _knows(name: str, key: str) -> bool:
    """Whether the config of an architecture has a value `key`."""
    found = CONFIG_MAPPING[name]
    return key in found.attribute_map or any(key == field.name for field in fields(found))


def _scaling(config: LanguageConfig) -> dict[str, Any]:
    """`rope_scaling` under transformers' names; older configs say "type"."""
    values = dict(config.rope_scaling or {})
    if values and not (values.keys() & {"rope_type", "type"}):
        raise ValueError(f"language.rope_scaling={values} has no rope_type; set one, e.g. yarn")
    if "rope_theta" in values:
        raise ValueError("language.rope_scaling.rope_theta is language.rope_theta; set that")
    kind = values.pop("type", None)
    return values if kind is None else {"rope_type": kind, **values}


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def _rope_refused_by_name(where: str) -> Iterator[None]:
    """Makes errors of what transformers' validation of RoPE only warns about: a wrong key, a value out of range."""
    logger, complaints = logging.getLogger(_ROPE_LOGGER), _Complaints()
    before = logger.level, logger.propagate
    logger.addHandler(complaints)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(complaints)
        logger.level, logger.propagate = before
    if said := [text for text in complaints.said if "implicit factor" not in text]:
        raise ValueError(f"{where}: {'; '.join(said)}")


class _Exact(nn.Module):
    """A rotary embedding whose frequencies stay in fp32 when the model is cast.

    In bf16 they are off by up to 2^-9 of themselves: at position 10,000 that is many turns.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        def in_place(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(in_place, recurse)


def _exact(rotary: type[nn.Module]) -> Any:
    return type(rotary.__name__, (_Exact, rotary), {"__module__": rotary.__module__})
