"""Visual tasks: each draws a scene and returns the record of one sample, with its images.

A task is a function (rng, options) -> Sample; `TASKS` is the table. The box is in 0-999 of the image, as
Seed1.5-VL writes coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from sail_train.data.synth import draw, thoughts
from sail_train.data.synth.scans import digit_grid

SIDE = 3
"""Digits in a row and in a column of a grid."""

CAPTION = "Describe what you see."
GRID_CAPTION = "A grid of digits: {}"
COLOURS_QUESTION = "Name the colours."
SHAPES_QUESTION = "Name the shapes."


@dataclass(frozen=True, kw_only=True)
class Options:
    held_out: bool = False
    """Draw from the scans that training never sees."""
    think: bool = False
    """Answer with a worked thought and a box (multi-step tasks only)."""
    hasty: float = 0.0
    """Share of thoughts that stop early and answer wrong (see `thoughts`)."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    question: str
    response: str
    """What the teacher says; a hasty one need not be right."""
    answer: str
    """What is true."""
    verifier: str
    images: tuple[Image.Image, ...] = ()
    mode: str = "direct"
    meta: dict[str, Any] = field(default_factory=dict)


def _grid(rng: np.random.Generator, options: Options) -> tuple[list[int], Image.Image]:
    digits = rng.integers(0, 10, size=(SIDE, SIDE))
    return [int(digit) for digit in digits.ravel()], digit_grid(digits, rng, held_out=options.held_out)


def _digits(cells: list[int]) -> str:
    return "".join(map(str, cells))


def read(rng: np.random.Generator, options: Options) -> Sample:
    cells, image = _grid(rng, options)
    text = _digits(cells)
    return Sample(question="Read the grid.", response=text, answer=text, verifier="grid", images=(image,))


def cell(rng: np.random.Generator, options: Options) -> Sample:
    cells, image = _grid(rng, options)
    question, answer = ask_cell(cells, rng)
    return Sample(question=question, response=answer, answer=answer, verifier="number", images=(image,))


def ask_cell(cells: list[int], rng: np.random.Generator) -> tuple[str, str]:
    """A question about one cell of a grid, and its answer."""
    row, col = (int(i) for i in rng.integers(0, SIDE, size=2))
    return f"Which digit is in row {row + 1}, column {col + 1}?", str(cells[row * SIDE + col])


def compare(rng: np.random.Generator, options: Options) -> Sample:
    cells, image = _grid(rng, options)
    question, answer = ask_larger(cells)
    return Sample(question=question, response=answer, answer=answer, verifier="number", images=(image,))


def ask_larger(cells: list[int]) -> tuple[str, str]:
    """A question that compares two cells of a grid, and its answer."""
    return "Which is larger, the first or the last digit?", str(max(cells[0], cells[-1]))


def box(rng: np.random.Generator, options: Options) -> Sample:
    digits = rng.permutation(10)[: SIDE * SIDE].reshape(SIDE, SIDE)
    row, col = (int(i) for i in rng.integers(0, SIDE, size=2))
    corners = [round(999 * edge / SIDE) for edge in (col, row, col + 1, row + 1)]
    answer = f"[{','.join(map(str, corners))}]"
    image = digit_grid(digits, rng, held_out=options.held_out)
    question = f"Where is the {digits[row, col]}? Give its box."
    return Sample(question=question, response=answer, answer=answer, verifier="box", images=(image,))


def count(rng: np.random.Generator, options: Options) -> Sample:
    cells, image = _grid(rng, options)
    bound = int(rng.integers(2, 8))
    question = f"How many digits are greater than {bound}?"
    thought, said = thoughts.count_thought(cells, bound, rng=rng, hasty=options.hasty)
    truth = sum(digit > bound for digit in cells)
    meta = {"task": "count", "cells": _digits(cells), "bound": bound}
    return _multi_step(question, thought, said, truth, image, options, meta)


def row_sum(rng: np.random.Generator, options: Options) -> Sample:
    cells, image = _grid(rng, options)
    row = int(rng.integers(SIDE))
    picked = cells[row * SIDE : (row + 1) * SIDE]
    thought, said = thoughts.sum_thought(picked, rng=rng, hasty=options.hasty)
    meta = {"task": "sum", "cells": _digits(picked)}
    return _multi_step(f"What is the sum of row {row + 1}?", thought, said, sum(picked), image, options, meta)


def _multi_step(
    question: str, thought: str, said: int, truth: int, image: Image.Image, options: Options, meta: dict[str, Any]
) -> Sample:
    response = thoughts.boxed(thought, said) if options.think else str(truth)
    mode = "think" if options.think else "direct"
    return Sample(
        question=question,
        response=response,
        answer=str(truth),
        verifier="number",
        images=(image,),
        mode=mode,
        meta=meta,
    )


def chart(rng: np.random.Generator, options: Options) -> Sample:
    heights = [int(height) for height in rng.integers(1, draw.CHART_MAX + 1, size=3)]
    image = draw.bar_chart(heights, rng)
    if rng.random() < 0.5:
        text = _digits(heights)
        return Sample(question="Read the bars.", response=text, answer=text, verifier="grid", images=(image,))
    which = int(rng.integers(3))
    answer = str(heights[which])
    return Sample(
        question=f"How high is bar {which + 1}?", response=answer, answer=answer, verifier="number", images=(image,)
    )


def _scene(rng: np.random.Generator) -> tuple[list[tuple[str, str]], Image.Image]:
    colours = list(draw.COLOURS)
    shapes = [(colours[rng.integers(len(colours))], draw.SHAPES[rng.integers(len(draw.SHAPES))]) for _ in range(4)]
    return shapes, draw.shape_grid(shapes, 2, rng)


def shapes(rng: np.random.Generator, options: Options) -> Sample:
    scene, image = _scene(rng)
    if rng.random() < 0.5:
        question, words = COLOURS_QUESTION, [colour for colour, _ in scene]
    else:
        question, words = SHAPES_QUESTION, [shape for _, shape in scene]
    text = " ".join(words)
    return Sample(question=question, response=text, answer=text, verifier="exact", images=(image,))


def grid_caption(rng: np.random.Generator, options: Options) -> Sample:
    cells, image = _grid(rng, options)
    text = GRID_CAPTION.format(_digits(cells))
    return Sample(question=CAPTION, response=text, answer=text, verifier="exact", images=(image,))


def frames(rng: np.random.Generator, options: Options) -> Sample:
    """Several images: the same strip of digits changes from frame to frame."""
    number = int(rng.integers(2, 4))
    strips = rng.integers(0, 10, size=(number, 1, SIDE))
    images = tuple(digit_grid(strip, rng, held_out=options.held_out) for strip in strips)
    which = int(rng.integers(number + 1))
    if which == number:
        question, text = "Read every frame.", _digits([int(digit) for digit in strips.ravel()])
    else:
        question, text = f"Read frame {which + 1}.", _digits([int(digit) for digit in strips[which].ravel()])
    return Sample(question=question, response=text, answer=text, verifier="grid", images=images)


TASKS: dict[str, Callable[[np.random.Generator, Options], Sample]] = {
    "read": read,
    "cell": cell,
    "compare": compare,
    "box": box,
    "count": count,
    "sum": row_sum,
    "chart": chart,
    "shapes": shapes,
    "grid_caption": grid_caption,
    "frames": frames,
}
