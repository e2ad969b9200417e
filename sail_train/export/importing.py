"""A released SAIL-VL2 folder -> a model folder of ours: config, weights, tokenizer, processor, generation config."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from sail_train.config import to_dataclass
from sail_train.export.parts import make_processor, write_parts
from sail_train.export.shards import SHARD_SIZE
from sail_train.model.build import generation_config
from sail_train.model.config import ModelConfig
from sail_train.model.folder import resolve, weight_files
from sail_train.model.names import PARTS
from sail_train.model.released_config import model_values, read_json, saved_settings
from sail_train.processor.processor import SailVLProcessor

_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens")
"""What is taken over of their generation config; the end tokens are the processor's."""


def import_released(
    source: str | Path,
    out: str | Path,
    *,
    overrides: Iterable[tuple[str, Any]] = (),
    dtype: str | None = None,
    shard_size: str = SHARD_SIZE,
) -> Path:
    """Write the released model in `source` to `out` as ours.

    Args:
        overrides: (dotted key below the model's config, value), such as ("image.max_tiles", 12).
        dtype: of the weights; None: as they were saved.

    Raises:
        ValueError: `source` is no released SAIL-VL2 folder, has a setting that we have not, or does not fit together.
    """
    folder = resolve(source)
    values = model_values(folder)
    weight_files(folder)
    for key, value in overrides:
        _set(values, key, value)
    config = to_dataclass(ModelConfig, values, path="model")
    processor = make_processor(config, folder, saved_settings(folder).get("system"))
    return write_parts(
        config,
        dict.fromkeys(PARTS, folder),
        Path(out),
        processor=processor,
        dtype=dtype or _dtype(folder),
        shard_size=shard_size,
        generation=_generation(folder, processor),
    )


def _dtype(folder: Path) -> str:
    values = read_json(folder / "config.json")
    return str(values.get("dtype") or values.get("torch_dtype") or "bfloat16")


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ValueError(f"model.{key}: {name} is a value, not a section")
    values[last] = copy.deepcopy(value)


def _generation(folder: Path, processor: SailVLProcessor) -> GenerationConfig:
    config = generation_config(processor.token_ids)
    if (folder / "generation_config.json").is_file():
        theirs = read_json(folder / "generation_config.json")
        config.update(**{name: theirs[name] for name in _SAMPLING if theirs.get(name) is not None})
    return config
