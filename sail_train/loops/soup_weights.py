"""The weighted average of saved model folders, and their copies; a folder appears complete or not at all.

One file of the first member is in memory at a time, together with one tensor of another, so that a model larger than
memory can be averaged. Sums run in fp32 (float64 stays float64) and are rounded once, to the members' dtype.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sail_train.model.folder import weight_files


def layout(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor of a model folder, by tensor name."""
    found: dict[str, Path] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def average(members: Sequence[Path], weights: Sequence[float], destination: Path) -> None:
    """Writes the weighted average of `members` to `destination`; everything but the weights is the first's.

    The folder appears complete or not at all. A ValueError names an integer tensor that differs between members.
    """
    layouts = [layout(member) for member in members]
    partial = _fresh(destination)
    shutil.copytree(members[0], partial, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in sorted(set(layouts[0].values())):
        names = [name for name, file in layouts[0].items() if file == path]
        tensors = {name: _average_tensor(name, [files[name] for files in layouts], weights) for name in names}
        save_file(tensors, partial / path.name, metadata={"format": "pt"})
    _publish(partial, destination)


def copy_model(member: Path, destination: Path) -> None:
    """Copies a model folder; complete or not at all."""
    partial = _fresh(destination)
    shutil.copytree(member, partial)
    _publish(partial, destination)


def _fresh(destination: Path) -> Path:
    partial = destination.with_name(destination.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    destination.parent.mkdir(parents=True, exist_ok=True)
    return partial


def _publish(partial: Path, destination: Path) -> None:
    if destination.exists():
        shutil.rmtree(destination)
    partial.rename(destination)


def _average_tensor(name: str, files: Sequence[Path], weights: Sequence[float]) -> torch.Tensor:
    first = _read(files[0], name)
    if not first.is_floating_point():
        if any(not torch.equal(first, _read(file, name)) for file in files[1:]):
            raise ValueError(f"soup: tensor {name} holds whole numbers that differ between members; it has no average")
        return first
    dtype = torch.promote_types(first.dtype, torch.float32)
    total = first.to(dtype) * weights[0]
    for file, weight in zip(files[1:], weights[1:], strict=True):
        total += _read(file, name).to(dtype) * weight
    return total.to(first.dtype)


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)
