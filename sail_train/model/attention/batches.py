"""Segments of like length side by side as one batch, the shorter ones padded behind their end.

Under causal attention no query sees a key behind itself, so the padding needs no mask and the result is exact;
without causality only segments of equal length share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """How T packed tokens stand in batches of P padded positions in all."""

    shapes: tuple[tuple[int, int], ...]
    """(segments, padded length) of each batch."""
    index: Tensor | None
    """(P,) token that stands at each padded position, batch after batch; None if that is 0..T-1."""
    inverse: Tensor | None
    """(T,) padded position of each token; None with `index`."""

    @classmethod
    def of(cls, lengths: Sequence[int], *, causal: bool, device: torch.device) -> Batches:
        """For segments of `lengths`, all above 0."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        shapes = _shapes([lengths[i] for i in order], causal=causal)
        # A segment's padding repeats its own last token, so that nothing of another segment enters its batch.
        bounds = torch.tensor([0, *lengths]).cumsum(0)  # (num_segments + 1,)
        sizes = torch.tensor([lengths[i] for i in order])
        padded = torch.tensor([length for count, length in shapes for _ in range(count)])
        within = torch.arange(int(padded.sum())) - (padded.cumsum(0) - padded).repeat_interleave(padded)  # (P,)
        real = within < sizes.repeat_interleave(padded)
        starts = bounds[torch.tensor(order)]
        index = starts.repeat_interleave(padded) + torch.minimum(within, (sizes - 1).repeat_interleave(padded))
        inverse = torch.empty(int(bounds[-1]), dtype=torch.long)
        inverse[index[real]] = real.nonzero()[:, 0]
        plain = len(index) == len(inverse) and bool((index == torch.arange(len(index))).all())
        return cls(
            shapes=shapes,
            index=None if plain else index.to(device),
            inverse=None if plain else inverse.to(device),
        )


def _shapes(descending: Sequence[int], *, causal: bool) -> tuple[tuple[int, int], ...]:
    """(segments, padded length) of batches of neighbours."""
    batches: list[tuple[int, int]] = []
    for length in descending:
        count, longest = batches[-1] if batches else (0, 0)
        slack = 8 + longest // 16 if causal else 0  # measured: less padding costs more calls, more costs work
        if batches and longest - length <= slack:
            batches[-1] = (count + 1, longest)
        else:
            batches.append((1, length))
    return tuple(batches)
