"""Which keys a released config may have and of which kind their values are; anything else is an error that names it.

A key is read, or has one value that is ours too, or is known to be inert: about the file, generation, tasks or code.
What nobody here has heard of could change what the model computes, so it is refused rather than passed over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from sail_train.config import nearest
from sail_train.model.config import LanguageConfig

INERT = frozenset((
    # the file, its code and its kernels
    "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "architectures", "attn_implementation", "auto_map",
    "dtype", "experts_implementation", "keys_to_ignore_at_inference", "model_type", "tokenizer_class", "torch_dtype",
    "torchscript", "transformers_version", "use_bfloat16", "use_cache", "use_flash_attn",
    # what a call returns, and generation, which generation_config.json settles
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "remove_invalid_values",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p",
    "typical_p",
    # other tasks and encoder-decoders, which older versions of transformers write into every config
    "add_cross_attention", "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id",
    "finetuning_task", "id2label", "is_decoder", "is_encoder_decoder", "label2id", "prefix", "problem_type",
    "pruned_heads", "sep_token_id", "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder",
    # tokens, which are the tokenizer's, and ties, which the weights are held against
    "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings",
))  # fmt: skip
"""Keys of any section that say nothing about what is computed."""
INERT_TOP = frozenset(("hidden_size", "img_context_token_id", "num_image_token", "system_message"))
"""Of the whole model: copies of what its parts, its tokenizer and its chat style say."""
INERT_VISION = frozenset(("initializer_factor", "use_head"))
"""Of the encoder: how weights once started, and the pooling head, which features do not pass through."""
_LANGUAGE = {"rope_parameters", *(field.name for field in fields(LanguageConfig))}
"""Keys that are read though not every architecture's config lists them: head_dim, rope_theta."""


def check_keys(values: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """ValueError that names a key which is neither `known` nor inert."""
    for key in values:
        if key not in known and key not in INERT:
            near = nearest(key, known)
            hint = f"did you mean {near!r}?" if near else "it may change what the model computes; take it out if not"
            raise ValueError(f"{where}: the key {key!r}={values[key]!r} is not known; {hint}")


def check_language_keys(values: Mapping[str, Any], where: str) -> None:
    """ValueError that names a key which transformers' config of the architecture has not."""
    name = str(values.get("model_type"))
    if name in CONFIG_MAPPING:
        default = CONFIG_MAPPING[name]()
        own = default.to_dict().keys() | default.attribute_map.keys() | _LANGUAGE
        check_keys({key: value for key, value in values.items() if not hasattr(default, key)}, own, where)


def whole(values: Mapping[str, Any], name: str, default: int, where: str | Path, *, least: int | None = 1) -> int:
    """`values[name]` or its default; ValueError if it is no whole number, or below `least`."""
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise ValueError(f"{where}: {name}={value!r} should be a whole number" + (f" from {least}" if least else ""))
    return value


def number(values: Mapping[str, Any], name: str, default: float, where: str | Path) -> float:
    """`values[name]` or its default; ValueError if it is no number above 0."""
    value = values.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError(f"{where}: {name}={value!r} should be a number above 0")
    return float(value)


def flag(values: Mapping[str, Any], name: str, default: bool, where: str | Path) -> bool:
    """`values[name]` or its default; ValueError if it is neither true nor false."""
    if not isinstance(value := values.get(name, default), bool):
        raise ValueError(f"{where}: {name}={value!r} should be true or false")
    return value


def section(values: Mapping[str, Any], name: str, where: str | Path) -> dict[str, Any]:
    """`values[name]`, or nothing if it is not there; ValueError if it is no object."""
    if not isinstance(value := values.get(name, {}), Mapping):
        raise ValueError(f"{where}: {name}={value!r} should be an object")
    return dict(value)


def channels(values: Mapping[str, Any], name: str, where: str | Path) -> list[float]:
    """The three numbers of `values[name]`; ValueError if they are none."""
    value = values[name]
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(item, int | float) for item in value):
        raise ValueError(f"{where}: {name}={value!r} should be three numbers, one per channel")
    return [float(item) for item in value]
