"""Named sums over ranks in one collective, although ranks need not know the same names beforehand.

A rank whose batch lacks a source has no sum for it. The names seen so far are agreed on; a rank that meets a new one
raises a flag in the vector, and only then do all ranks exchange names and reduce again.
"""

from __future__ import annotations

from collections.abc import Mapping

from sail_train import dist


class Sums:
    """Remembers the agreed names; use one instance, with the same calls, on every rank."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def reduce(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums over ranks of every name that any rank has, now or before; a rank without it adds 0."""
        unknown = float(any(name not in self.names for name in sums))
        flag, *totals = dist.all_reduce_sums([unknown, *(sums.get(name, 0.0) for name in self.names)])
        if flag:
            everywhere = dist.gather_objects(sorted(sums))
            self.names = sorted({*self.names, *(name for names in everywhere for name in names)})
            totals = dist.all_reduce_sums([sums.get(name, 0.0) for name in self.names])
        return dict(zip(self.names, totals, strict=True))
