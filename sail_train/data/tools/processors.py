"""The processor that a command measures with: a trained model's, or one made from a tokenizer alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sail_train.processor.config import ProcessorConfig

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor


def open_processor(folder: Path) -> SailVLProcessor:
    """Of a model folder, of a run that has one, or of a tokenizer's folder (with default image limits).

    Raises:
        ValueError: the folder holds none of these.
    """
    from sail_train.processor.processor import build_processor, load_processor  # imports transformers

    if not folder.is_dir():
        raise ValueError(f"--processor {folder} is not a folder")
    for place in (folder, folder / "model"):
        if (place / "processor_config.json").is_file():
            return load_processor(place)
    return build_processor(ProcessorConfig(tokenizer=str(folder)))
