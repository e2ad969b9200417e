"""What every backend is: a function over packed tensors, and a word on where it cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sail_train.model.attention.packing import Packing

HALF = (torch.float16, torch.bfloat16)


class Attend(Protocol):
    """The one signature."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        packing: Packing,
        *,
        scale: float,
        dropout: float,
        window: int | None,
    ) -> Tensor:
        """(T, heads, head_dim) of (T, heads, head_dim) queries and (T, kv_heads, head_dim) keys and values.

        `window` is set under causal attention alone: each query sees that many keys, its own position's included.
        """


Refuses = Callable[[torch.device, torch.dtype, int | None], str | None]
"""(device, dtype, head_dim or None if not known yet) -> why the backend cannot run there; None: it can."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    name: str
    summary: str
    """What computes, in a few words for the log."""
    attend: Attend
    refuses: Refuses
    dropout: bool
    """Whether it can drop attention probabilities."""


def kernel_refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """What flash attention's variable-length kernels ask of a GPU, whoever built them."""
    if device.type != "cuda":
        return f"its kernel needs a GPU, and the tensors are on {device.type}"
    if dtype not in HALF:
        return f"its kernel needs bfloat16 or float16, and the tensors are {str(dtype).removeprefix('torch.')}"
    if (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        return f"its kernel needs compute capability 8.0 (an A100) or newer, and this GPU has {capability}"
    return None
