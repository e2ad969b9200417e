"""A trained model -> a standalone Hugging Face folder, checked before it is handed out.

The folder holds safetensors, config, generation config, tokenizer, processor and chat template. Format "sail" is ours:
other tools load it after `import sail_train.auto`. "code" is the same with the code of model and processor beside it,
for `trust_remote_code=True` where sail_train is not installed. "released" has the names of SAIL-VL2's own folders.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sail_train.config import choice
from sail_train.export.code import AUTO_MAP, code_files
from sail_train.export.released import released_config, write_released
from sail_train.export.shards import SHARD_SIZE, aside, parse_size, weight_bytes
from sail_train.model.build import load_model
from sail_train.model.folder import read_config, resolve, weight_files
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.processor import SailVLProcessor, load_processor

log = logging.getLogger(__name__)

FORMATS = {
    "sail": "ours, loaded with `import sail_train.auto`",
    "code": "ours with the code beside it, loaded with trust_remote_code=True",
    "released": "SAIL-VL2's as it was released, by key names and config",
}
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


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
    saved = read_config(folder).get("dtype") or "float32"
    dtype = dtype or saved
    width = choice("dtype", dtype, _WIDTHS)
    need = weight_bytes(weight_files(folder)) * width // _WIDTHS.get(saved, 4)
    with aside(out, 2 * need if format == "released" else need) as writing:
        vlm, processor = load_model(folder, dtype=dtype), load_processor(folder)
        check_fit(vlm, processor, folder)
        check_finite(vlm, folder)
        if format == "released":
            released_config(vlm, processor)  # what it refuses is refused before anything is written
        vlm.save_pretrained(writing, max_shard_size=limit)
        if format == "released":
            _as_released(vlm, processor, writing, limit)
        else:
            processor.save_pretrained(writing)
            _point_to_code(writing, AUTO_MAP if format == "code" else {})
        if format == "code":
            for name, text in code_files().items():
                (writing / name).write_text(text, encoding="utf-8")
    log.info("exported %s to %s in %s (%s)", folder, out, dtype, FORMATS[format])
    return out


def _as_released(
    vlm: SailVLForConditionalGeneration, processor: SailVLProcessor, folder: Path, shard_size: int
) -> None:
    """Turn a folder of ours into one in the released format."""
    ours = folder / "ours"
    ours.mkdir()
    for file in list(folder.iterdir()):
        if file != ours:
            file.rename(ours / file.name)
    write_released(vlm, processor, ours, folder, shard_size)
    shutil.rmtree(ours)


def _point_to_code(folder: Path, auto_map: Mapping[str, str]) -> None:
    """Set, or take away, where transformers is told to find the classes."""
    for name, keys in {"config.json": set(auto_map), "processor_config.json": {"AutoProcessor"}}.items():
        values: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
        values.pop("auto_map", None)
        if auto_map:
            values["auto_map"] = {key: auto_map[key] for key in sorted(keys)}
        (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_fit(vlm: SailVLForConditionalGeneration, processor: SailVLProcessor, folder: Path) -> None:
    """ValueError if model and processor of one folder disagree; names the setting and both values."""
    config, rows = vlm.config, vlm.config.text_config.vocab_size
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


def check_finite(vlm: SailVLForConditionalGeneration, folder: Path) -> None:
    """ValueError if a weight is infinite or not a number."""
    if broken := [name for name, weight in vlm.named_parameters() if not weight.isfinite().all()]:
        raise ValueError(f"{folder}: {', '.join(broken[:5])} hold values that are not finite ({len(broken)} in all)")
