"""Worked thoughts for the multi-step tasks, and a teacher whose thoughts slip.

A thought first writes down what is seen, cell by cell, then computes step by step with a running value, each
step one or two tokens: small models learn that where bare answers stay near chance. `slip` is the share of
thoughts in which one step is off by one and the error is carried to the answer, as in imperfectly distilled
data; what reinforcement learning then repairs.
"""

from __future__ import annotations

import numpy as np


def count_thought(cells: list[int], bound: int, *, rng: np.random.Generator, slip: float = 0.0) -> tuple[str, int]:
    """("351209744; 001112333", 3): the cells, then how many so far are greater than `bound`."""
    running = _running([int(cell > bound) for cell in cells], rng, slip, ceiling=len(cells))
    return f"{_written(cells)}; {_written(running)}", running[-1]


def sum_thought(cells: list[int], *, rng: np.random.Generator, slip: float = 0.0) -> tuple[str, int]:
    """("351; 03 08 09", 9): the cells, then the running sum in two digits."""
    running = _running(cells, rng, slip, ceiling=99)
    return f"{_written(cells)}; {' '.join(f'{value:02d}' for value in running)}", running[-1]


def boxed(thought: str, answer: int | str) -> str:
    """The assistant's text: thought, then the boxed answer."""
    return f"<think>{thought}</think>\\boxed{{{answer}}}"


def _running(terms: list[int], rng: np.random.Generator, slip: float, *, ceiling: int) -> list[int]:
    slip_at = int(rng.integers(len(terms))) if rng.random() < slip else -1
    total, running = 0, []
    for i, term in enumerate(terms):
        total += term
        if i == slip_at:
            total += 1 if rng.random() < 0.5 or total == 0 else -1
        total = min(total, ceiling)
        running.append(total)
    return running


def _written(values: list[int]) -> str:
    return "".join(str(value) for value in values)
