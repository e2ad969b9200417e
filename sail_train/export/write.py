"""A trained model -> a standalone Hugging Face folder, checked before it is handed out.

Its weights pass from folder to folder one by one, cast and looked at for values that are not finite, so that memory
holds a shard. Where transformers may store them under names of its own the model is loaded once, to be checked.

The folder holds safetensors, config, generation config, tokenizer, processor and chat template. Format "sail" is ours:
other tools load it after `import sail_train.auto`. "code" is the same with the code of model and processor beside it,
for `trust_remote_code=True` where sail_train is not installed. "released" has the names of SAIL-VL2's own folders.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from sail_train.config import choice
from sail_train.export.code import AUTO_MAP, code_files
from sail_train.export.parts import Add, adder, on_meta
from sail_train.export.released import as_released, released_config, write_settings
from sail_train.export.shards import SHARD_SIZE, ShardWriter, aside, parse_size, weight_bytes
from sail_train.model.build import DTYPES, generation_config, load_config, load_model
from sail_train.model.folder import resolve, tensors, weight_files
from sail_train.model.hf_config import SailVLConfig
from sail_train.model.language import TESTED
from sail_train.model.ties import without_ties
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.model.weights import load_part
from sail_train.processor.processor import SailVLProcessor, load_processor

log = logging.getLogger(__name__)

FORMATS = {
    "sail": "ours, loaded with `import sail_train.auto`",
    "code": "ours with the code beside it, loaded with trust_remote_code=True",
    "released": "SAIL-VL2's as it was released, by key names and config",
}


def export(
    source: str | Path,
    out: str | Path,
    dtype: str | None = None,
    *,
    format: str = "sail",
    shard_size: str = SHARD_SIZE,
) -> Path:
    """Write the model of a run directory or model folder to `out`.

    Args:
        dtype: of the weights; None: as they were saved.
        format: a name in `FORMATS`.
        shard_size: largest size of a weight file.

    Raises:
        ValueError: `source` holds no whole model with its processor, the two do not fit, a weight is not finite,
            `out` is there already or has no room.
    """
    choice("format", format, FORMATS)
    folder, out, limit = resolve(source), Path(out), parse_size(shard_size)
    config, processor = load_config(folder), load_processor(folder)
    saved = str(config.dtype or "float32").removeprefix("torch.")
    dtype = dtype or saved
    width = choice("dtype", dtype, DTYPES).itemsize
    need = weight_bytes(weight_files(folder)) * width // choice("dtype", saved, DTYPES).itemsize
    check_fit(config, processor, folder)
    vlm = on_meta(config)
    _say_dtype(vlm, DTYPES[dtype])
    generation = _generation(folder, processor)
    if format == "released":
        released_config(config, processor, dtype)  # what it refuses is refused before anything is written
    with aside(out, need) as writing:
        writer = ShardWriter(writing, limit)
        write = as_released(writer.add) if format == "released" else writer.add
        pass_weights(vlm, folder, adder(write, "", DTYPES[dtype]), dtype)
        writer.close()
        generation.save_pretrained(writing)
        if format == "released":
            write_settings(config, processor, writing, dtype)
        else:
            config.save_pretrained(writing)
            processor.save_pretrained(writing)
            _point_to_code(writing, AUTO_MAP if format == "code" else {})
        if format == "code":
            for name, text in code_files().items():
                (writing / name).write_text(text, encoding="utf-8")
    log.info("exported %s to %s in %s (%s)", folder, out, dtype, FORMATS[format])
    return out


def pass_weights(vlm: SailVLForConditionalGeneration, folder: Path, add: Add, dtype: str) -> None:
    """Every weight of a model folder to `add`, while it is checked against `vlm`, which is on the meta device.

    ValueError names weights that are missing, unknown or misshapen.
    """

    def passed() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in without_ties(vlm, tensors(folder), folder):
            add(name, tensor)
            yield name, tensor

    config = vlm.config
    if config.text_config.model_type in TESTED and config.vision_config.type != "transformers":
        load_part(vlm, passed(), part="model", folder=folder, generator=None)
        return
    log.info("%s is loaded whole to be checked: not all names of its weights are ours", folder)
    load_model(folder, dtype=dtype)
    for name, tensor in tensors(folder):
        add(name, tensor)


def _say_dtype(vlm: SailVLForConditionalGeneration, dtype: torch.dtype) -> None:
    config = vlm.config
    config.architectures = [type(vlm).__name__]
    for part in (config, config.vision_config, config.text_config):
        part.dtype = dtype


def _generation(folder: Path, processor: SailVLProcessor) -> GenerationConfig:
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return generation_config(processor.token_ids)


def _point_to_code(folder: Path, auto_map: Mapping[str, str]) -> None:
    """Set, or take away, where transformers is told to find the classes."""
    for name, keys in {"config.json": set(auto_map), "processor_config.json": {"AutoProcessor"}}.items():
        values: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
        values.pop("auto_map", None)
        if auto_map:
            values["auto_map"] = {key: auto_map[key] for key in sorted(keys)}
        (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_fit(config: SailVLConfig, processor: SailVLProcessor, folder: Path) -> None:
    """ValueError if model and processor of one folder disagree; names the setting and both values."""
    rows = config.text_config.vocab_size
    pairs = {
        "patch_size": (config.vision_config.patch_size, processor.image_spec.patch_size),
        "merge_size": (config.merge_size, processor.image_spec.merge_size),
        "image_token_id": (config.image_token_id, processor.image_token_id),
    }
    for name, (of_model, of_processor) in pairs.items():
        if of_model != of_processor:
            raise ValueError(f"{folder}: {name} is {of_model} for the model, {of_processor} for the processor")
    if processor.vocab_size > rows:
        raise ValueError(f"{folder}: the tokenizer has {processor.vocab_size} tokens, the model {rows} embeddings")
