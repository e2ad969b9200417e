"""A trained model -> a standalone Hugging Face folder, checked before it is handed out.

The folder holds safetensors, config, generation config, tokenizer, processor and chat template; other tools load it
after `import sail_train.auto`. It is written aside and renamed, so that a folder that is there is whole.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from sail_train.model.build import load_model, save_model
from sail_train.model.folder import read_config, resolve
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.processor import SailVLProcessor, load_processor

log = logging.getLogger(__name__)


def export(source: str | Path, out: str | Path, dtype: str | None = None) -> Path:
    """Write the model of a run directory or model folder to `out`, in `dtype` (None: as it was saved).

    ValueError if `source` holds no whole model with its processor, if the two do not fit, if a weight is not
    finite, or if `out` is there already.
    """
    folder, out = resolve(source), Path(out)
    if out.exists():
        raise ValueError(f"{out} exists; export to a new folder")
    dtype = dtype or read_config(folder).get("dtype") or "float32"
    vlm, processor = load_model(folder, dtype=dtype), load_processor(folder)
    check_fit(vlm, processor, folder)
    check_finite(vlm, folder)
    aside = out.with_name(out.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        save_model(vlm, aside)
        processor.save_pretrained(aside)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    log.info("exported %s to %s in %s", folder, out, dtype)
    return out


def check_fit(vlm: SailVLForConditionalGeneration, processor: SailVLProcessor, folder: Path) -> None:
    """ValueError if model and processor of one folder disagree; names the setting and both values."""
    config, rows = vlm.config, vlm.config.text_config.vocab_size
    pairs = {
        "patch_size": (config.vision_config.patch_size, processor.patch_size),
        "merge_size": (config.merge_size, processor.merge_size),
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
