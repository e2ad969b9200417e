"""What a loop leaves behind, the same for every loop: the line that a recipe's summary is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    status: str
    """"finished", or "stopped": asked to, saved, goes on when started again."""
    steps: int = 0
    """Updates taken."""
    tokens: int = 0
    """Tokens read by training, prompts and images included."""
    seconds: float = 0.0
    """Of the loop's own work over all its starts; evaluation is counted apart."""
    metrics_before: dict[str, float] = field(default_factory=dict)
    """Evaluation of what the stage started from."""
    metrics_after: dict[str, float] = field(default_factory=dict)
    model_dir: Path | None = None
    """The model folder that the next stage loads; None while unfinished."""
