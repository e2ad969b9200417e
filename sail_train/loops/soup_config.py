"""What a model soup averages and when its result is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class SoupConfig:
    """The `soup` section of a run; its members are the parents `member_1`, `member_2` ..."""

    metrics: list[str] = field(default_factory=list)
    """Names such as "read/greedy" by which soup and members are compared; their plain mean if there are several.
    Each must be among those that `eval.modes` asks for."""
    tolerance_se: float = 1.0
    """The soup is kept if its metric is at least the members' mean less this many standard errors."""
    weights: list[float] | None = None
    """Share of each member, in order, summing to 1; None gives every member the same."""

    def __post_init__(self) -> None:
        if self.tolerance_se < 0:
            raise ValueError(f"soup.tolerance_se={self.tolerance_se} must be 0 or more")
        if self.weights is not None and (min(self.weights, default=0) <= 0 or not math.isclose(sum(self.weights), 1)):
            raise ValueError(f"soup.weights={self.weights} must be positive and sum to 1")
