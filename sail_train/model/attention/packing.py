"""Where the segments of a packed sequence are, and what backends have laid out for them.

Planned once per forward pass; each layer attends with it. No mask or order is built before a backend asks for one,
and then it is kept for the layers that follow (and for their recomputation in the backward pass).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from sail_train.model.attention.batches import Batches

Layout = TypeVar("Layout")


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """A packed sequence of T tokens."""

    lengths: tuple[int, ...]
    """Of each segment, in tokens; all above 0."""
    cu_seqlens: Tensor
    """(num_segments + 1,) int32, as variable-length kernels want it."""
    causal: bool
    backend: str = "auto"
    """A name of `BACKENDS`, or "auto"."""
    layouts: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)
    """What `layout` has built."""

    @classmethod
    def plan(cls, lengths: Sequence[int], *, causal: bool, device: torch.device, backend: str = "auto") -> Packing:
        """For segments of `lengths`, all above 0."""
        bounds = torch.tensor([0, *lengths]).cumsum(0)  # (num_segments + 1,)
        on_device = bounds.to(device, torch.int32)
        return cls(lengths=tuple(lengths), cu_seqlens=on_device, causal=causal, backend=backend)

    @classmethod
    def of(cls, cu_seqlens: Tensor, *, backend: str = "auto") -> Packing:
        """Causal, for the samples between `cu_seqlens`, (num_samples + 1,); empty ones are skipped."""
        bounds = cu_seqlens.tolist()
        lengths = [end - start for start, end in zip(bounds, bounds[1:], strict=False) if end > start]
        return cls.plan(lengths, causal=True, device=cu_seqlens.device, backend=backend)

    @property
    def max_length(self) -> int:
        return max(self.lengths)

    @property
    def device(self) -> torch.device:
        return self.cu_seqlens.device

    def layout(self, build: Callable[..., Layout], *args: Any) -> Layout:
        """`build(packing, *args)`, built at the first call and kept."""
        key = (build, *args)
        if key not in self.layouts:
            self.layouts[key] = build(self, *args)
        return self.layouts[key]

    @property
    def batches(self) -> Batches:
        """Segments of like length side by side."""
        return self.layout(_batches)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(segments, padded length) of each of `batches`."""
        return self.batches.shapes

    @property
    def index(self) -> Tensor | None:
        """(P,) token that stands at each padded position of `batches`; None if that is 0..T-1."""
        return self.batches.index

    @property
    def inverse(self) -> Tensor | None:
        """(T,) padded position of each token; None with `index`."""
        return self.batches.inverse


def _batches(packing: Packing) -> Batches:
    return Batches.of(packing.lengths, causal=packing.causal, device=packing.device)
