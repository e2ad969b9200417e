"""The engine's part of a checkpoint directory: fragments and buffers as safetensors, counters as JSON.

    optimizer-00000-of-00002.safetensors    fp32 weights and moments that one rank held, "<parameter>@<start>:<kind>"
    buffers.safetensors                     persistent buffers of the module, if it has any
    engine.json                             counters, names and sizes of trained parameters, checksums of frozen ones

Loading reads, for each fragment of the new engine, the elements that it needs from whichever files have them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from sail_train import dist
from sail_train.engine.fragments import KINDS, Fragment

HEADER = "engine.json"
BUFFERS = "buffers.safetensors"


def save_fragments(directory: Path, fragments: Sequence[Fragment], optimizer: torch.optim.Optimizer) -> None:
    """Writes this rank's fragments to its own file."""
    tensors = {
        f"{fragment.name}@{fragment.start}:{kind}": fragment.view(kind, optimizer).cpu().clone()
        for fragment in fragments
        for kind in KINDS
    }
    name = f"optimizer-{dist.rank():05d}-of-{dist.world_size():05d}.safetensors"
    safetensors.torch.save_file(tensors, directory / name)


def load_fragments(directory: Path, fragments: Sequence[Fragment], optimizer: torch.optim.Optimizer) -> None:
    """Fills this rank's fragments, whatever ranks and ZeRO stage wrote them."""
    with ExitStack() as stack:
        saved: dict[str, list[tuple[int, Any]]] = {}
        for path in sorted(directory.glob("optimizer-*.safetensors")):
            file = stack.enter_context(safetensors.safe_open(path, framework="pt"))
            for key in file.keys():  # noqa: SIM118 - not a dict
                name, _, start_kind = key.rpartition("@")
                start, _, kind = start_kind.partition(":")
                if kind == "weight":
                    saved.setdefault(name, []).append((int(start), file))
        for fragment in fragments:
            for kind in KINDS:
                _fill(fragment, kind, fragment.view(kind, optimizer), saved.get(fragment.name, []))


def _fill(fragment: Fragment, kind: str, target: torch.Tensor, saved: Sequence[tuple[int, Any]]) -> None:
    filled = 0
    for start, file in saved:
        source = file.get_slice(f"{fragment.name}@{start}:{kind}")  # (saved length,)
        first = max(fragment.start, start)
        last = min(fragment.start + fragment.length, start + source.get_shape()[0])
        if first < last:
            target[first - fragment.start : last - fragment.start].copy_(source[first - start : last - start])
            filled += last - first
    if filled != fragment.length:
        raise ValueError(
            f"checkpoint has {filled} of {fragment.length} elements of {fragment.name} ({kind}); a file is missing"
        )


def save_header(
    directory: Path, *, counters: Mapping[str, int], trained: Mapping[str, int], frozen: Mapping[str, int]
) -> None:
    header = {"counters": dict(counters), "trained": dict(trained), "frozen": dict(frozen)}
    (directory / HEADER).write_text(json.dumps(header))


def load_header(directory: Path, *, trained: Mapping[str, int], frozen: Mapping[str, int]) -> dict[str, int]:
    """The counters; refuses a checkpoint of another model, of other trained parts or on other frozen weights."""
    header = json.loads((directory / HEADER).read_text())
    if header["trained"] != dict(trained):
        name = _first_difference(header["trained"], trained)
        raise ValueError(
            f"{directory} trained other parameters than this run ({name}: {header['trained'].get(name, 'absent')}"
            f" elements there, {trained.get(name, 'absent')} here); restore model and optim.lr, or use another run_dir"
        )
    if header["frozen"] != dict(frozen):
        name = _first_difference(header["frozen"], frozen)
        raise ValueError(
            f"{directory} was trained on other frozen weights ({name} differs); restore the parents and"
            " engine.precision, or use another run_dir"
        )
    return header["counters"]


def _first_difference(saved: Mapping[str, int], current: Mapping[str, int]) -> str:
    return min(name for name in {*saved, *current} if saved.get(name) != current.get(name))


def save_buffers(directory: Path, buffers: Mapping[str, torch.Tensor]) -> None:
    if buffers:
        tensors = {name: value.detach().cpu().clone() for name, value in buffers.items()}
        safetensors.torch.save_file(tensors, directory / BUFFERS)


def load_buffers(directory: Path, buffers: Mapping[str, torch.Tensor]) -> None:
    """Fills the module's persistent buffers in place."""
    if not buffers:
        return
    saved = safetensors.torch.load_file(directory / BUFFERS)
    for name, value in buffers.items():
        value.detach().copy_(saved[name])
