"""Learning rate as a pure function of the step: warmup, then one of `CURVES`.

DeepSpeed's and torch's schedulers are left out: they count calls, so a skipped step or a resume can shift them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sail_train.config import choice
from sail_train.engine.config import ScheduleConfig


def warmup_steps(max_steps: int, config: ScheduleConfig) -> int:
    """Steps of linear warmup, from whichever of the two settings is used."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * max_steps)


def learning_rate_factor(step: int, max_steps: int, config: ScheduleConfig) -> float:
    """Share of the peak learning rate, 0..1, with which update number `step` (from 0) is taken.

    Warmup goes from 1 / warmup to 1, so that the first update already moves.
    """
    warmup = warmup_steps(max_steps, config)
    if step < warmup:
        return (step + 1) / warmup
    return choice("schedule.name", config.name, CURVES)(min(step, max_steps), warmup, max_steps, config)


def _constant(step: int, warmup: int, max_steps: int, config: ScheduleConfig) -> float:
    return 1.0


def _linear(step: int, warmup: int, max_steps: int, config: ScheduleConfig) -> float:
    progress = (step - warmup) / max(1, max_steps - warmup)
    return 1 - (1 - config.min_ratio) * progress


def _cosine(step: int, warmup: int, max_steps: int, config: ScheduleConfig) -> float:
    progress = (step - warmup) / max(1, max_steps - warmup)
    return config.min_ratio + (1 - config.min_ratio) * (1 + math.cos(math.pi * progress)) / 2


def _wsd(step: int, warmup: int, max_steps: int, config: ScheduleConfig) -> float:
    """Warmup, stable, decay (MiniCPM, arXiv 2404.06395): linear decay over the last share of the steps."""
    decay = math.ceil(config.decay_ratio * max_steps)
    progress = max(0, step - (max_steps - decay)) / max(1, decay)
    return 1 - (1 - config.min_ratio) * progress


CURVES: dict[str, Callable[[int, int, int, ScheduleConfig], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _wsd,
}
