"""A model of ours -> a folder in the format in which SAIL-VL2 was released: its key names, its config.

The processor's settings go into preprocessor_config.json: those that the released processor knows by its names, and
all of ours under a key of their own, so that `sail-train import` gives back what was exported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from sail_train.config import to_mapping
from sail_train.export.parts import Add
from sail_train.model.hf_config import SailVLConfig
from sail_train.model.names import PARTS, part_of
from sail_train.model.released import SAIL_VL2
from sail_train.model.released_config import KEPT, released_values
from sail_train.model.rules import to_theirs
from sail_train.processor.processor import SailVLProcessor


def released_config(config: SailVLConfig, processor: SailVLProcessor, dtype: str) -> dict[str, Any]:
    """config.json of the released format; ValueError if the model has something that it has no words for."""
    return released_values(config, to_mapping(processor.image_spec), processor.template, dtype)


def as_released(write: Add) -> Add:
    """Writes our weights under the released names."""

    def add(name: str, tensor: Tensor) -> None:
        part = part_of(name)
        for theirs, piece in to_theirs([(name.removeprefix(PARTS[part]), tensor)], SAIL_VL2.parts[part]):
            write(theirs, piece)

    return add


def write_settings(config: SailVLConfig, processor: SailVLProcessor, out: Path, dtype: str) -> None:
    """Config, tokenizer and processor settings of the released format."""
    _write_json(out / "config.json", released_config(config, processor, dtype))
    _write_json(out / "preprocessor_config.json", _settings(config, processor))
    processor.tokenizer.save_pretrained(out)


def _settings(config: SailVLConfig, processor: SailVLProcessor) -> dict[str, Any]:
    vision, image = config.vision_config, to_mapping(processor.image_spec)
    return {
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "min_dynamic_patch": image["min_tiles"],
        "max_dynamic_patch": image["max_tiles"],
        "use_thumbnail": image["thumbnail"],
        "use_msac": image["multi_scale"],
        KEPT: {"image": image, "video": to_mapping(processor.video_spec), "system": processor.system},
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
