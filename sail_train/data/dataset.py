"""dataset.json beside the shards of a folder: how many samples it holds, and where they come from."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sail_train.data import remote
from sail_train.data.listing import ShardList

DATASET = "dataset.json"


def write_dataset(folder: Path, fields: Mapping[str, Any]) -> None:
    """Writes the folder's dataset.json whole or not at all; the folder is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{DATASET}.{os.getpid()}.tmp"
    aside.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(folder / DATASET)


def dataset_size(source: str, shards: ShardList) -> int:
    """Samples of a source, as the dataset.json beside its shards says; ValueError if none does."""
    folders = Counter(os.path.dirname(path) for path in shards)
    total = 0
    for folder, count in folders.items():
        path = os.path.join(folder, DATASET)
        try:
            with open(path, encoding="utf-8") as file:
                described = json.load(file)
            samples, listed = int(described["samples"]), int(described["shards"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"source {source!r}: data.temperature needs its size, and {remote.shown(path)} does not tell it "
                f"({type(error).__name__}); run `sail-train data index`, or give data.sources.{source}.size"
            ) from None
        if listed != count:
            raise ValueError(
                f"source {source!r}: {path} is of {listed} shards, and {count} are named; give "
                f"data.sources.{source}.size"
            )
        total += samples
    return total
