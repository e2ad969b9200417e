"""Weights of saved model folders: what they hold, whether they fit together, and their average.

Only safetensors headers are read to compare; to average, one file of the first member is in memory at a time
together with one tensor of every other, so a model larger than memory can be averaged. Sums run in fp32 (float64
stays float64) and are rounded once, to the members' dtype.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

MUST_EQUAL = {
    "architecture": ("config.json",),
    "tokenizer": ("tokenizer.json", "chat_template.jinja"),
    "processor": ("processor_config.json", "preprocessor_config.json"),
}
"""What members must share byte for byte besides their tensors' names, shapes and dtypes."""

MAX_NAMED = 5
"""Differing tensors that a message names."""


def weight_files(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor of a model folder, by tensor name."""
    index = folder / INDEX
    if index.is_file():
        weight_map = json.loads(index.read_text())["weight_map"]
        return {name: folder / file for name, file in weight_map.items()}
    if not (folder / SINGLE).is_file():
        raise ValueError(f"{folder} holds neither {SINGLE} nor {INDEX}; a soup's members are saved model folders")
    with safe_open(folder / SINGLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), folder / SINGLE)


def tensor_headers(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every tensor, from the files' headers alone."""
    headers: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in sorted(set(weight_files(folder).values())):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                view = file.get_slice(name)
                headers[name] = (view.get_dtype(), tuple(view.get_shape()))
    return headers


def differences(first: Path, other: Path) -> list[str]:
    """What keeps two model folders from being averaged, in words; empty if nothing does."""
    found = []
    for what, names in MUST_EQUAL.items():
        unequal = [name for name in names if _bytes_hash(first / name) != _bytes_hash(other / name)]
        if unequal:
            found.append(f"{what} ({', '.join(unequal)} differ)")
    return found + _tensor_differences(tensor_headers(first), tensor_headers(other))


def _bytes_hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _tensor_differences(
    first: Mapping[str, tuple[str, tuple[int, ...]]], other: Mapping[str, tuple[str, tuple[int, ...]]]
) -> list[str]:
    found = []
    only_one = sorted(set(first) ^ set(other))
    if only_one:
        found.append(f"tensor names ({_some(only_one)} in one only)")
    unequal = [name for name in sorted(set(first) & set(other)) if first[name] != other[name]]
    if unequal:
        shown = [f"{name} {_header(first[name])} and {_header(other[name])}" for name in unequal]
        found.append(f"tensor shapes or dtypes ({_some(shown)})")
    return found


def _header(header: tuple[str, tuple[int, ...]]) -> str:
    dtype, shape = header
    return f"{dtype} {'x'.join(map(str, shape)) or 'scalar'}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def average(members: Sequence[Path], weights: Sequence[float], destination: Path) -> None:
    """Writes the weighted average of `members` to `destination`; everything but the weights is the first's.

    The folder appears complete or not at all. A ValueError names an integer tensor that differs between members.
    """
    layouts = [weight_files(member) for member in members]
    partial = _fresh(destination)
    shutil.copytree(members[0], partial, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in sorted(set(layouts[0].values())):
        names = [name for name, file in layouts[0].items() if file == path]
        tensors = {name: _average_tensor(name, [layout[name] for layout in layouts], weights) for name in names}
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
