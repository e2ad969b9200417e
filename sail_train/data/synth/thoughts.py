"""Worked thoughts for the multi-step tasks, and a teacher whose thoughts are hasty.

A thought first writes down what is seen, cell by cell, then computes step by step with a running value, each
step one or two tokens: small models learn that where bare answers stay near chance. `hasty` is the share of
thoughts that stop a third before the end and answer from there, as imperfectly distilled thoughts do: a habit that
fine-tuning copies and that reinforcement learning breaks, since the patient thoughts are the ones that pay.
"""

from __future__ import annotations

import itertools

import numpy as np


def count_thought(cells: list[int], bound: int, *, rng: np.random.Generator, hasty: float = 0.0) -> tuple[str, int]:
    """("351209744; 001112333", 3): the cells, then how many so far are greater than `bound`."""
    running = _running([int(cell > bound) for cell in cells], rng, hasty)
    return f"{_written(cells)}; {_written(running)}", running[-1]


def sum_thought(cells: list[int], *, rng: np.random.Generator, hasty: float = 0.0) -> tuple[str, int]:
    """("351; 03 08 09", 9): the cells, then the running sum in two digits."""
    running = _running(cells, rng, hasty)
    return f"{_written(cells)}; {' '.join(f'{value:02d}' for value in running)}", running[-1]


def boxed(thought: str, answer: int | str) -> str:
    """The assistant's text: thought, then the boxed answer."""
    return f"<think>{thought}</think>\\boxed{{{answer}}}"


def _running(terms: list[int], rng: np.random.Generator, hasty: float) -> list[int]:
    if rng.random() < hasty:
        terms = terms[: len(terms) * 2 // 3]
    return list(itertools.accumulate(terms))


def _written(values: list[int]) -> str:
    return "".join(str(value) for value in values)
