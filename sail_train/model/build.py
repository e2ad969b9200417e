"""Config and parents -> a model: each part loaded, or initialised from the seed; and models saved and loaded.

A part that is initialised depends on (seed, part) alone, not on what the other parts do: a stage that loads its
vision encoder starts with the same language model as one that does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationConfig, Qwen3Config
from transformers.initialization import no_init_weights
from transformers.utils.logging import disable_progress_bar

from sail_train.config import choice
from sail_train.model.config import AdapterConfig, LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.folder import read_config, resolve, tensors, weight_files
from sail_train.model.hf_config import SailVLConfig
from sail_train.model.names import PARTS
from sail_train.model.vlm import SailVLForConditionalGeneration

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

disable_progress_bar()  # a bar for a few files, in every rank's log

_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
_NOT_SHAPES = {
    "path", "tokenizer", "initializer_range", "max_position_embeddings", "vocab_size", "rope_scaling", "model",
    "router_aux_loss_coef",
}  # fmt: skip


def build_model(
    config: ModelConfig,
    *,
    parents: Mapping[str, str],
    seed: int,
    token_ids: Mapping[str, int],
    vocab_size: int,
    dtype: str = "float32",
) -> SailVLForConditionalGeneration:
    """The model that a stage starts from, in training mode.

    `parents` are model folders or run directories: "model" is a whole model; "vision", "adapter" and "language"
    go before the part's `path` in the config; other keys are ignored. `token_ids` are the tokenizer's "image",
    "eos" and "pad", and `vocab_size` its length, for which embeddings grow where they are too few.
    ValueError if a folder is missing or does not fit.
    """
    if both := {"model"} <= parents.keys() and sorted(parents.keys() & PARTS.keys()):
        raise ValueError(f"parents has both model and {', '.join(both)}; give a whole model or parts")
    if "model" in parents:
        return _whole(config, resolve(parents["model"]), token_ids, vocab_size, dtype)
    folders = _folders(config, parents)
    rows = vocab_size
    if "language" in folders:
        rows = max(vocab_size, _language_values(read_config(folders["language"])).get("vocab_size", 0))
    with no_init_weights():  # every weight is drawn or loaded below
        vlm = SailVLForConditionalGeneration(hf_config(config, token_ids=token_ids, vocab_size=rows))
    vlm.language_model.tie_weights()
    stds = {part: own.initializer_range for part, own in _parts(config).items()}
    for part, prefix in PARTS.items():
        module = vlm.get_submodule(prefix.removesuffix("."))
        if part in folders:
            check_shapes(config, folders[part], part)
            _load_part(module, folders[part], part, _generator(seed, f"{part}/rows"))
        else:
            initialise(module, std=stds[part], generator=_generator(seed, part))
    vlm.generation_config = _generation_config(token_ids)
    return vlm.to(choice("dtype", dtype, DTYPES)).train()  # type: ignore[arg-type]


def hf_config(config: ModelConfig, *, token_ids: Mapping[str, int], vocab_size: int) -> SailVLConfig:
    """The transformers config of a model of these shapes."""
    return SailVLConfig(
        vision_config={k: v for k, v in asdict(config.vision).items() if k != "path"},
        text_config=_qwen3(config.language, token_ids=token_ids, vocab_size=vocab_size),
        merge_size=config.adapter.merge_size,
        reduction=config.adapter.reduction,
        attention=config.attention,
        adapter_hidden_size=config.adapter.hidden_size,
        image_token_id=token_ids["image"],
    )


def initialise(module: nn.Module, *, std: float, generator: torch.Generator) -> None:
    """Normal weights of `std`, zero biases, norms of one; from `generator` alone."""
    done: set[int] = set()
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if id(parameter) in done:
                continue
            done.add(id(parameter))
            if name == "bias":
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=std, generator=generator)


def check_shapes(config: ModelConfig, folder: Path, part: str) -> None:
    """ValueError if a folder's part is not of the config's shapes; names the field and both values."""
    values = read_config(folder)
    if part == "vision":
        wanted, found = asdict(config.vision), values.get("vision_config", {})
    elif part == "adapter":
        wanted = {"merge_size": config.adapter.merge_size, "adapter_hidden_size": config.adapter.hidden_size}
        found = values
    else:
        wanted, found = _language_shapes(config.language), _language_values(values)
    if part != "language" and values.get("model_type") != SailVLConfig.model_type:
        raise ValueError(f"{folder} holds a {values.get('model_type')!r} model; a {part} part comes from a sail_vl one")
    for name in wanted.keys() - _NOT_SHAPES:
        if name in found and _plain(found[name]) != _plain(wanted[name]):
            raise ValueError(f"{part}.{name}={wanted[name]} in the config, {found[name]} in {folder}; they must agree")


def save_model(
    vlm: SailVLForConditionalGeneration, directory: str | Path, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """config.json, generation_config.json and safetensors; `state_dict` (names with or without "vlm.") if the
    module itself does not hold its weights, as under ZeRO 3. The processor is saved beside it by its own method."""
    weights = None
    if state_dict is not None:
        weights = {name.removeprefix("vlm."): tensor for name, tensor in state_dict.items()}
        if vlm.config.text_config.tie_word_embeddings:
            weights.pop("language_model.lm_head.weight", None)
    vlm.save_pretrained(directory, state_dict=weights)


def load_model(directory: str | Path, *, dtype: str = "float32") -> SailVLForConditionalGeneration:
    """The model of a model folder or run directory, in eval mode; ValueError if it is not a whole sail_vl model."""
    folder = resolve(directory)
    if (found := read_config(folder).get("model_type")) != SailVLConfig.model_type:
        raise ValueError(f"{folder} holds a {found!r} model, not {SailVLConfig.model_type!r}")
    weight_files(folder)
    try:
        loaded: Any = SailVLForConditionalGeneration.from_pretrained(
            folder,
            dtype=choice("dtype", dtype, DTYPES),
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be loaded: {error}") from error
    vlm, info = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info[problem])):
            raise ValueError(f"{folder} has {problem.replace('_', ' ')}: {', '.join(names[:5])} ({len(names)} in all)")
    return vlm


def _whole(
    config: ModelConfig, folder: Path, token_ids: Mapping[str, int], vocab_size: int, dtype: str
) -> SailVLForConditionalGeneration:
    for part in PARTS:
        check_shapes(config, folder, part)
    vlm = load_model(folder, dtype=dtype)
    if (rows := vlm.config.text_config.vocab_size) < vocab_size:
        raise ValueError(f"{folder} has {rows} embeddings for a tokenizer of {vocab_size}; it was trained with another")
    if (found := vlm.config.image_token_id) != token_ids["image"]:
        raise ValueError(f"{folder} takes token {found} for an image, the tokenizer {token_ids['image']}; another's?")
    return vlm.train()  # loading leaves it in eval mode, in which layers ignore activation checkpointing


def _parts(config: ModelConfig) -> dict[str, VisionConfig | AdapterConfig | LanguageConfig]:
    return {"vision": config.vision, "adapter": config.adapter, "language": config.language}


def _folders(config: ModelConfig, parents: Mapping[str, str]) -> dict[str, Path]:
    chosen = {part: parents.get(part) or own.path for part, own in _parts(config).items()}
    return {part: resolve(path) for part, path in chosen.items() if path}


def _load_part(module: nn.Module, folder: Path, part: str, generator: torch.Generator) -> None:
    weights = dict(_part_tensors(folder, part))
    own = dict(module.named_parameters())
    if missing := sorted(own.keys() - weights.keys()):
        raise ValueError(f"{folder} lacks {part} weights: {', '.join(missing[:5])} ({len(missing)} in all)")
    if unknown := sorted(weights.keys() - module.state_dict().keys()):
        raise ValueError(f"{folder} has unknown {part} weights: {', '.join(unknown[:5])} ({len(unknown)} in all)")
    for name, parameter in own.items():
        tensor = weights[name].to(parameter.dtype)
        if part == "language" and name in _EMBEDDINGS:
            tensor = _grow(tensor, len(parameter), generator)
        if tensor.shape != parameter.shape:
            raise ValueError(f"{folder}: {part} weight {name} is {tuple(tensor.shape)}, not {tuple(parameter.shape)}")
        parameter.data.copy_(tensor)


def _part_tensors(folder: Path, part: str) -> Iterator[tuple[str, Tensor]]:
    if read_config(folder).get("model_type") == SailVLConfig.model_type:
        return tensors(folder, PARTS[part])
    return tensors(folder)


def _grow(tensor: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """More rows, drawn like the ones there are, so that a new token starts as an average one."""
    if len(tensor) >= rows:
        return tensor
    mean, std = tensor.float().mean(0), tensor.float().std(0)
    noise = torch.randn(rows - len(tensor), tensor.shape[1], generator=generator)
    return torch.cat((tensor, (mean + noise * std).to(tensor.dtype)))


def _qwen3(config: LanguageConfig, *, token_ids: Mapping[str, int], vocab_size: int) -> Qwen3Config:
    values = {k: v for k, v in asdict(config).items() if k not in ("path", "tokenizer", "rope_theta", "model_type", "vocab_size", "rope_scaling", "model", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "router_aux_loss_coef")}
    return Qwen3Config(
        **values,
        vocab_size=vocab_size,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        eos_token_id=token_ids["eos"],
        pad_token_id=None,  # else the embedding would zero that row's gradient, and its output with it when tied
    )


def _language_shapes(config: LanguageConfig) -> dict[str, Any]:
    return {"model_type": "qwen3", **asdict(config)}


def _language_values(values: dict[str, Any]) -> dict[str, Any]:
    """The language model's config of a sail_vl or a Qwen3 folder, with its rope_theta at the top."""
    found = dict(values.get("text_config", {}) if values.get("model_type") == SailVLConfig.model_type else values)
    rope = found.get("rope_parameters") or {}
    if "rope_theta" in rope:
        found["rope_theta"] = rope["rope_theta"]
    return found


def _generation_config(token_ids: Mapping[str, int]) -> GenerationConfig:
    return GenerationConfig(
        eos_token_id=[token_ids["eos"], token_ids["pad"]], pad_token_id=token_ids["pad"], do_sample=False
    )


def _generator(seed: int, part: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{part}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
