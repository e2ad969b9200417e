"""One part's weights out of a model folder into a module, tensor by tensor, nothing held twice.

names in the folder -> those of the module: as they are, or, where a mixture of experts was released with a tensor for
each expert (`experts.7.gate_proj.weight`), the piece of transformers' fused parameter (`experts.gate_up_proj`)
-> written through the placement, the embeddings grown where they have too few rows. What is missing, unknown or
misshapen is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sail_train.model.initialise import grow
from sail_train.model.placement import HOST, Placement

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def load_part(
    module: nn.Module,
    weights: Iterable[tuple[str, Tensor]],
    *,
    part: str,
    folder: Path,
    generator: torch.Generator | None,
    placement: Placement = HOST,
) -> None:
    """Fills every parameter of `module` from `weights`, (name, tensor) pairs out of `folder`.

    `generator` draws the rows that embeddings lack; None if they must lack none. ValueError names weights that are
    missing, unknown or misshapen.
    """
    own = dict(module.named_parameters())
    shapes = {name: placement.shape(parameter) for name, parameter in own.items()}
    known, by_rows = module.state_dict().keys(), set() if generator is None else _grows(module, own)
    filled, unknown, short = dict.fromkeys(own, 0), [], {}
    for name, tensor in weights:
        if (place := _place(name, shapes)) is None:
            unknown += [] if name in known else [name]  # a tied weight has a second name
            continue
        owner, start, shape = place
        if name in by_rows and tensor.shape[1:] == shape[1:] and len(tensor) < shape[0]:
            short[name] = tensor
            continue
        if tensor.shape != shape:
            raise ValueError(f"{folder}: {part} weight {name} is {tuple(tensor.shape)}, not {tuple(shape)}")
        placement.write(own[owner], tensor, start)
        filled[owner] += tensor.numel()
    for name in (name for name in own if name in short):  # in the module's order, whatever that of the folder
        assert generator is not None
        placement.write(own[name], grow(short[name], shapes[name][0], generator))
        filled[name] = shapes[name].numel()
    if missing := [name for name, shape in shapes.items() if filled[name] != shape.numel()]:
        raise ValueError(f"{folder} lacks {part} weights: {', '.join(sorted(missing)[:5])} ({len(missing)} in all)")
    if unknown:
        raise ValueError(
            f"{folder} has unknown {part} weights: {', '.join(sorted(unknown)[:5])} ({len(unknown)} in all)"
        )


def _place(name: str, shapes: Mapping[str, torch.Size]) -> tuple[str, int, torch.Size] | None:
    """The parameter that a weight of the folder belongs to, its first element there and its shape; None if none."""
    if name in shapes:
        return name, 0, shapes[name]
    if not (match := _EXPERT.fullmatch(name)):
        return None
    prefix, number, kind = match[1], int(match[2]), match[3]
    fused = f"{prefix}.down_proj" if kind == "down" else f"{prefix}.gate_up_proj"
    if fused not in shapes or len(shapes[fused]) != 3 or number >= shapes[fused][0]:
        return None
    rows, columns = shapes[fused][1:]  # (H, I), or (2 I, H): the gate's rows, then those of the other
    start = number * rows * columns
    if kind == "down":
        return fused, start, torch.Size((rows, columns))
    return fused, start + (kind == "up") * (rows // 2) * columns, torch.Size((rows // 2, columns))


def _grows(module: Any, own: dict[str, nn.Parameter]) -> set[str]:
    """Names of the parameters with a row for each token."""
    if not hasattr(module, "get_input_embeddings"):
        return set()
    layers = [module.get_input_embeddings(), module.get_output_embeddings()]
    rows = {id(parameter) for layer in layers if layer is not None for parameter in layer.parameters()}
    return {name for name, parameter in own.items() if id(parameter) in rows}
