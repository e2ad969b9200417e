"""Config and parents -> a model: each part loaded, or initialised from the seed; and models saved and loaded.

All goes through a placement: weights are whole on every rank or, under ZeRO 3, in shares, and then never whole.
A part that is initialised depends on (seed, part) alone, not on what the other parts do: a stage that loads its
vision encoder starts with the same language model as one that does not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.initialization import no_init_weights
from transformers.utils.logging import disable_progress_bar

from sail_train.config import choice
from sail_train.model.config import AdapterConfig, LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.folder import read_config, resolve, tensors, weight_files
from sail_train.model.hf_config import SailVLConfig
from sail_train.model.initialise import draws_itself, initialise, part_generator
from sail_train.model.language import TESTED, build_language, text_config
from sail_train.model.names import PARTS
from sail_train.model.placement import HOST, Placement, hand_over, on_meta
from sail_train.model.probe import check_packed
from sail_train.model.released import part_tensors
from sail_train.model.released_config import part_config
from sail_train.model.shapes import check_shapes, language_values
from sail_train.model.ties import without_ties
from sail_train.model.vision import build_encoder
from sail_train.model.vision.foreign import ForeignEncoder
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.model.weights import load_part

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

disable_progress_bar()  # a bar for a few files, in every rank's log


def build_model(
    config: ModelConfig,
    *,
    parents: Mapping[str, str],
    seed: int,
    token_ids: Mapping[str, int],
    vocab_size: int,
    dtype: str = "float32",
    placement: Placement = HOST,
) -> SailVLForConditionalGeneration:
    """The model that a stage starts from, in training mode.

    `parents` are model folders or run directories: "model" is a whole model; "vision", "adapter" and "language"
    go before the part's `path` in the config; other keys are ignored. `token_ids` are the tokenizer's "image",
    "eos" and "pad", and `vocab_size` its length, for which embeddings grow where they are too few. `placement` says
    where parameters are; one that shares them out has a `dtype` of its own.
    ValueError if a folder is missing or does not fit, or if packing cannot train the language model.
    """
    if both := {"model"} <= parents.keys() and sorted(parents.keys() & PARTS.keys()):
        raise ValueError(f"parents has both model and {', '.join(both)}; give a whole model or parts")
    if "model" in parents:
        vlm = _whole(config, resolve(parents["model"]), token_ids, vocab_size, dtype, placement)
    else:
        vlm = _from_parts(config, _folders(config, parents), seed, token_ids, vocab_size, placement)
        if not placement.shared:
            vlm.to(choice("dtype", dtype, DTYPES))  # type: ignore[arg-type]
    with nullcontext() if vlm.config.text_config.model_type in TESTED else placement.whole(vlm):
        check_packed(vlm)
    return vlm.train()  # loading leaves it in eval mode, in which layers ignore activation checkpointing


def hf_config(config: ModelConfig, *, token_ids: Mapping[str, int], vocab_size: int) -> SailVLConfig:
    """The transformers config of a model of these shapes, with `vocab_size` rows of embeddings."""
    return SailVLConfig(
        vision_config={k: v for k, v in asdict(config.vision).items() if k != "path"},
        text_config=text_config(config.language, eos_token_id=token_ids["eos"], vocab_size=vocab_size),
        merge_size=config.adapter.merge_size,
        reduction=config.adapter.reduction,
        attention=config.attention,
        adapter_hidden_size=config.adapter.hidden_size,
        image_token_id=token_ids["image"],
    )


def save_model(
    vlm: SailVLForConditionalGeneration, directory: str | Path, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """config.json, generation_config.json and safetensors; `state_dict` (names with or without "vlm.") if the
    module itself does not hold its weights, as under ZeRO 3. The processor is saved beside it by its own method.

    A mixture of experts is saved with a tensor for each expert, as the released ones are.
    """
    weights = None
    if state_dict is not None:
        weights = {name.removeprefix("vlm."): tensor for name, tensor in state_dict.items()}
        if vlm.config.text_config.tie_word_embeddings:
            for name in vlm.all_tied_weights_keys:
                weights.pop(name, None)
    vlm.save_pretrained(directory, state_dict=weights)


def load_config(folder: Path) -> SailVLConfig:
    """The config of a model folder; ValueError if it is not that of a whole sail_vl model."""
    values = read_config(folder)
    if (found := values.pop("model_type", None)) != SailVLConfig.model_type:
        raise ValueError(f"{folder} holds a {found!r} model, not {SailVLConfig.model_type!r}")
    return SailVLConfig(**values)


def load_model(directory: str | Path, *, dtype: str = "float32") -> SailVLForConditionalGeneration:
    """The model of a model folder or run directory, in eval mode; ValueError if it is not a whole sail_vl model."""
    folder = resolve(directory)
    return _load(folder, load_config(folder), dtype)


def _load(folder: Path, config: SailVLConfig, dtype: str) -> SailVLForConditionalGeneration:
    weight_files(folder)
    try:
        loaded: Any = SailVLForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            dtype=choice("dtype", dtype, DTYPES),
            local_files_only=True,
            trust_remote_code=False,
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
    config: ModelConfig,
    folder: Path,
    token_ids: Mapping[str, int],
    vocab_size: int,
    dtype: str,
    placement: Placement,
) -> SailVLForConditionalGeneration:
    """A folder's weights under the stage's config: what is no shape (attention, rope_scaling) is the stage's."""
    values = read_config(folder)
    for part in PARTS:
        check_shapes(config, folder, part)
    rows = language_values(values).get("vocab_size", 0)
    if rows < (needed := max(vocab_size, config.language.vocab_size or 0)):
        raise ValueError(f"{folder} has {rows} embeddings for a tokenizer of {needed}; it was trained with another")
    if (found := values.get("image_token_id")) != token_ids["image"]:
        raise ValueError(f"{folder} takes token {found} for an image, the tokenizer {token_ids['image']}; another's?")
    if (found := values.get("model_type")) != SailVLConfig.model_type:
        raise ValueError(f"{folder} holds a {found!r} model, not {SailVLConfig.model_type!r}")
    made = hf_config(config, token_ids=token_ids, vocab_size=rows)
    return _streamed(folder, made, placement) if placement.shared else _load(folder, made, dtype)


def _streamed(folder: Path, config: SailVLConfig, placement: Placement) -> SailVLForConditionalGeneration:
    """`_load`, tensor by tensor; whole first where transformers may store weights under other names."""
    vlm = _construct(config, placement)
    if config.text_config.model_type in TESTED and config.vision_config.type != "transformers":
        load_part(vlm, tensors(folder), part="model", folder=folder, generator=None, placement=placement)
    else:
        log.info("%s is read whole on every rank, in fp32, and then shared out: not all its names are ours", folder)
        hand_over(_load(folder, config, "float32"), vlm, placement)
    if (folder / "generation_config.json").is_file():
        vlm.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return vlm


def _construct(config: SailVLConfig, placement: Placement) -> SailVLForConditionalGeneration:
    """The model, its weights not yet defined."""
    with no_init_weights(), on_meta() if placement.shared else nullcontext():
        vlm = SailVLForConditionalGeneration(config)
    vlm.language_model.tie_weights()
    placement.settle(vlm)
    return vlm


def _from_parts(
    config: ModelConfig,
    folders: Mapping[str, Path],
    seed: int,
    token_ids: Mapping[str, int],
    vocab_size: int,
    placement: Placement,
) -> SailVLForConditionalGeneration:
    rows = max(vocab_size, config.language.vocab_size or 0)
    if "language" in folders:
        rows = max(rows, language_values(part_config(folders["language"])).get("vocab_size", 0))
    vlm = _construct(hf_config(config, token_ids=token_ids, vocab_size=rows), placement)
    for part, own in _parts(config).items():
        module = vlm.get_submodule(PARTS[part].removesuffix("."))
        if part in folders:
            check_shapes(config, folders[part], part)
            load_part(
                module,
                read_part(module, folders[part], part),
                part=part,
                folder=folders[part],
                generator=part_generator(seed, f"{part}/rows"),
                placement=placement,
            )
        elif placement.shared and draws_itself(module):
            log.info("%s draws its weights itself: it is built whole on every rank before it is shared out", part)
            whole = _construct_part(vlm.config, part)
            initialise(whole, std=own.initializer_range, generator=part_generator(seed, part))
            hand_over(whole, module, placement)
        else:
            initialise(module, std=own.initializer_range, generator=part_generator(seed, part), placement=placement)
    vlm.generation_config = generation_config(token_ids)
    return vlm


def _construct_part(config: SailVLConfig, part: str) -> nn.Module:
    """A vision encoder or a language model on its own, whole."""
    with no_init_weights():
        if part == "vision":
            return build_encoder(config.vision_config, config.merge_size, attention=config.attention)
        language: Any = build_language(config.text_config, never=config.image_token_id)
    language.tie_weights()
    return language


def _parts(config: ModelConfig) -> dict[str, VisionConfig | AdapterConfig | LanguageConfig]:
    return {"vision": config.vision, "adapter": config.adapter, "language": config.language}


def _folders(config: ModelConfig, parents: Mapping[str, str]) -> dict[str, Path]:
    chosen = {part: parents.get(part) or own.path for part, own in _parts(config).items()}
    return {part: resolve(path) for part, path in chosen.items() if path}


def read_part(module: nn.Module, folder: Path, part: str) -> Iterator[tuple[str, Tensor]]:
    """(name within the part, tensor) of a part's weights in a folder, for the part's `module`."""
    if isinstance(module, ForeignEncoder):
        return module.tensors(folder)
    return without_ties(module, part_tensors(folder, part, known=module.state_dict().keys()), folder)


def generation_config(token_ids: Mapping[str, int]) -> GenerationConfig:
    """Greedy, up to either of the end tokens."""
    return GenerationConfig(
        eos_token_id=[token_ids["eos"], token_ids["pad"]], pad_token_id=token_ids["pad"], do_sample=False
    )
