"""A model of ours -> a folder in the format in which SAIL-VL2 was released: its key names, its config.

The processor's settings go into preprocessor_config.json: those that the released processor knows by its names, and
all of ours under a key of their own, so that `sail-train import` gives back what was exported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from sail_train.config import to_mapping
from sail_train.export.shards import ShardWriter
from sail_train.model.folder import tensors
from sail_train.model.names import PARTS
from sail_train.model.released import SAIL_VL2
from sail_train.model.released_config import KEPT, released_values
from sail_train.model.rules import to_theirs
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.processor import SailVLProcessor


def released_config(vlm: SailVLForConditionalGeneration, processor: SailVLProcessor) -> dict[str, Any]:
    """config.json of the released format; ValueError if the model has something that it has no words for."""
    dtype = str(vlm.dtype).removeprefix("torch.")
    return released_values(vlm.config, to_mapping(processor.image_spec), processor.template, dtype)


def write_released(
    vlm: SailVLForConditionalGeneration, processor: SailVLProcessor, ours: Path, out: Path, shard_size: int
) -> None:
    """Rewrite the weights of the model folder `ours` to `out`, with config, tokenizer and processor settings."""
    _write_json(out / "config.json", released_config(vlm, processor))
    writer = ShardWriter(out, shard_size)
    for name, tensor in _weights(ours):
        writer.add(name, tensor)
    writer.close()
    _write_json(out / "preprocessor_config.json", _settings(vlm, processor))
    processor.tokenizer.save_pretrained(out)
    assert vlm.generation_config is not None
    vlm.generation_config.save_pretrained(out)


def _weights(ours: Path) -> Iterator[tuple[str, Tensor]]:
    for part, rules in SAIL_VL2.parts.items():
        yield from to_theirs(tensors(ours, PARTS[part]), rules)


def _settings(vlm: SailVLForConditionalGeneration, processor: SailVLProcessor) -> dict[str, Any]:
    vision, image = vlm.config.vision_config, to_mapping(processor.image_spec)
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
