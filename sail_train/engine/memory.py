"""Does it fit? Bytes needed against bytes free, before anything is allocated: a message instead of an aborted run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sail_train import dist

_GB = 1e9


def free_bytes(device: torch.device) -> int | None:
    """Bytes of a GPU that this process could still allocate; None for a CPU, whose memory others share."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def gather_bytes(parameters: Iterable[Any]) -> int:
    """What the whole of ZeRO 3 parameters takes, of those that a rank has a share of alone; those at hand cost nothing
    more, as those that DeepSpeed keeps whole because they are small."""
    return sum(
        parameter.ds_numel * parameter.element_size()
        for parameter in parameters
        if parameter.ds_status.name == "NOT_AVAILABLE"
    )


def check_fits(needed: int, free: int | None, *, what: str, remedy: str) -> None:
    """ValueError on every rank if any has less than `needed` bytes free; each calls it with its own `free`."""
    if free is None:
        return
    least = min(dist.gather_objects(free))
    if needed > least:
        raise ValueError(
            f"{what}: {needed / _GB:.1f} GB on every rank, but a device has {least / _GB:.1f} GB free; {remedy}"
        )
