"""Advantages: how much better a response is than the others to its prompt.

Rewards of one group, as far as they were graded -> float64 advantages. A group without variance, or with fewer than
two graded responses, has nothing to compare: all zeros, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sail_train.config import choice

Estimator = Callable[[np.ndarray], np.ndarray]

EPSILON = 1e-6


def grpo(rewards: np.ndarray) -> np.ndarray:
    """(R - mean) / (std + 1e-6), std with n - 1 (DeepSeekMath; the constants are verl's)."""
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + EPSILON)


def dr_grpo(rewards: np.ndarray) -> np.ndarray:
    """R - mean: without the standard deviation, hard and easy prompts weigh what their rewards say (Dr. GRPO)."""
    return rewards - rewards.mean()


def rloo(rewards: np.ndarray) -> np.ndarray:
    """R - mean of the other responses."""
    count = len(rewards)
    return (count * rewards - rewards.sum()) / (count - 1)


ADVANTAGES: dict[str, Estimator] = {"dr_grpo": dr_grpo, "grpo": grpo, "rloo": rloo}


def advantages(name: str, rewards: Sequence[float | None]) -> list[float]:
    """Advantage of each response of one group by the estimator `name`; None, a reward that failed, gets 0.

    A failed reward is no wrong answer: it is left out of the group's mean and deviation.
    """
    estimator = choice("rl.advantage", name, ADVANTAGES)
    graded = np.array([reward for reward in rewards if reward is not None], dtype=np.float64)
    if len(graded) < 2 or graded.max() == graded.min():
        return [0.0] * len(rewards)
    values = iter(estimator(graded).tolist())
    return [0.0 if reward is None else next(values) for reward in rewards]
