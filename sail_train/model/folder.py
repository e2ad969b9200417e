"""Model folders: where a path leads, what its config says, and its tensors.

A folder may come from a stranger: only safetensors are read, shards only from the folder itself, and a config that
could make transformers load code is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sail_train.model.hf_config import refuse_code, without_auto_map

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def resolve(path: str | Path) -> Path:
    """The model folder that `path` means: itself, or the model/ of a run directory; ValueError if neither."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "config.json").is_file():
            return folder
    if not Path(path).is_dir():
        raise ValueError(f"{path} is not a directory; give a model folder or a run directory")
    raise ValueError(f"{path} has neither config.json nor model/config.json; give a model folder or a finished run")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, without `auto_map`; ValueError if it is unreadable or could make transformers
    load code."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / 'config.json'} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{folder / 'config.json'} holds a {type(values).__name__}, not an object")
    values = without_auto_map(values)
    refuse_code(values, str(folder / "config.json"))
    return values


def tensor_names(folder: Path) -> list[str]:
    """Of all tensors of a folder."""
    names: list[str] = []
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as weights:
                names.extend(weights.keys())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
    return names


def tensors(folder: Path, prefix: str = "", *, only: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name without `prefix`, tensor) of each tensor whose name begins with `prefix`, or of those in `only`."""
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():
                    if name.startswith(prefix) and (only is None or name in only):
                        yield name.removeprefix(prefix), weights.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, all there; ValueError otherwise."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        found = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
        hint = f"; {', '.join(found)} are pickles, which are not read: convert them to safetensors" if found else ""
        raise ValueError(f"{folder} has no {_SINGLE} or {_INDEX}{hint}")
    try:
        names = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder / _INDEX} is not an index of shards: {error}") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{folder / _INDEX} names the shard {name!r}, which is not in the folder")
    return [folder / name for name in names]
