"""One part's weights out of a model folder into a module, tensor by tensor, nothing held twice.

names in the folder -> those of the module: as they are, or, where a mixture of experts was released with a tensor for
each expert (`experts.7.gate_proj.weight`), the piece of transformers' fused parameter (`experts.gate_up_proj`)
-> copied, the embeddings grown where they have too few rows. What is missing, unknown or misshapen is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sail_train.model.initialise import grow

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def load_part(
    module: nn.Module,
    weights: Iterable[tuple[str, Tensor]],
    *,
    part: str,
    folder: Path,
    generator: torch.Generator,
) -> None:
    """Fills every parameter of `module` from `weights`, (name, tensor) pairs out of `folder`.

    `generator` draws the rows that embeddings lack. ValueError names weights that are missing, unknown or misshapen.
    """
    own = dict(module.named_parameters())
    known, by_rows = module.state_dict().keys(), _grows(module, own)
    filled, unknown, short = dict.fromkeys(own, 0), [], {}
    for name, tensor in weights:
        owner, target = _place(name, own)
        if target is None:
            unknown += [] if name in known else [name]  # a tied weight has a second name
            continue
        if name in by_rows and tensor.shape[1:] == target.shape[1:] and len(tensor) < len(target):
            short[name] = tensor
            continue
        if tensor.shape != target.shape:
            raise ValueError(f"{folder}: {part} weight {name} is {tuple(tensor.shape)}, not {tuple(target.shape)}")
        target.copy_(tensor)
        filled[owner] += tensor.numel()
    for name in (name for name in own if name in short):  # in the module's order, whatever that of the folder
        own[name].data.copy_(grow(short[name], len(own[name]), generator))
        filled[name] = own[name].numel()
    if missing := [name for name, parameter in own.items() if filled[name] != parameter.numel()]:
        raise ValueError(f"{folder} lacks {part} weights: {', '.join(sorted(missing)[:5])} ({len(missing)} in all)")
    if unknown:
        raise ValueError(
            f"{folder} has unknown {part} weights: {', '.join(sorted(unknown)[:5])} ({len(unknown)} in all)"
        )


def _place(name: str, own: dict[str, Any]) -> tuple[str, Tensor | None]:
    """The parameter that a weight of the folder belongs to, and the piece of it that it is; None if there is none."""
    if name in own:
        return name, own[name].data
    if not (match := _EXPERT.fullmatch(name)):
        return name, None
    prefix, number, kind = match[1], int(match[2]), match[3]
    fused = f"{prefix}.down_proj" if kind == "down" else f"{prefix}.gate_up_proj"
    if fused not in own or own[fused].ndim != 3 or number >= len(own[fused]):
        return name, None
    expert: Tensor = own[fused].data[number]  # (H, I), or (2 I, H): the gate's rows, then those of the other
    if kind == "down":
        return fused, expert
    gate, up = expert.chunk(2)
    return fused, gate if kind == "gate" else up


def _grows(module: Any, own: dict[str, nn.Parameter]) -> set[str]:
    """Names of the parameters with a row for each token."""
    if not hasattr(module, "get_input_embeddings"):
        return set()
    layers = [module.get_input_embeddings(), module.get_output_embeddings()]
    rows = {id(parameter) for layer in layers if layer is not None for parameter in layer.parameters()}
    return {name for name, parameter in own.items() if id(parameter) in rows}
