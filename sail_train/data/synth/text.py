"""Text-only tasks: grids written out in digits, arithmetic, and a little language.

The written-out grids ask what the visual tasks ask, so a language model learns what to do with a grid before
it ever sees one: an adapter trained afterwards only has to make features look like the digits they show.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sail_train.data.synth import thoughts
from sail_train.data.synth.draw import COLOURS, SHAPES
from sail_train.data.synth.visual import (
    CAPTION,
    COLOURS_QUESTION,
    GRID_CAPTION,
    SHAPES_QUESTION,
    SIDE,
    Options,
    Sample,
    ask_cell,
    ask_larger,
)

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("day", "night"), ("left", "right"), ("open", "closed"),
    ("old", "new"), ("fast", "slow"), ("light", "dark"), ("full", "empty"), ("high", "low"), ("wet", "dry"),
)  # fmt: skip
WORDS = ("red", "blue", "green", "circle", "square", "triangle", "grid", "digit", "row", "bar", "frame", "image")


def _cells(rng: np.random.Generator) -> list[int]:
    return [int(digit) for digit in rng.integers(0, 10, size=SIDE * SIDE)]


def _written(cells: list[int]) -> str:
    return "".join(map(str, cells))


def grid_read(rng: np.random.Generator, options: Options) -> Sample:
    text = _written(_cells(rng))
    return Sample(question=f"{text}\nRead the grid.", response=text, answer=text, verifier="grid")


def written_caption(rng: np.random.Generator, options: Options) -> Sample:
    cells = _written(_cells(rng))
    text = GRID_CAPTION.format(cells)
    return Sample(question=f"{cells}\n{CAPTION}", response=text, answer=text, verifier="exact")


def grid_lookup(rng: np.random.Generator, options: Options) -> Sample:
    cells = _cells(rng)
    question, answer = ask_larger(cells) if rng.random() < 0.2 else ask_cell(cells, rng)
    return Sample(question=f"{_written(cells)}\n{question}", response=answer, answer=answer, verifier="number")


def written_shapes(rng: np.random.Generator, options: Options) -> Sample:
    question, words = ((COLOURS_QUESTION, list(COLOURS)), (SHAPES_QUESTION, list(SHAPES)))[int(rng.integers(2))]
    text = " ".join(words[i] for i in rng.integers(len(words), size=4))
    return Sample(question=f"{text}\n{question}", response=text, answer=text, verifier="exact")


def grid_count(rng: np.random.Generator, options: Options) -> Sample:
    cells, bound = _cells(rng), int(rng.integers(2, 8))
    thought, said = thoughts.count_thought(cells, bound, rng=rng, hasty=options.hasty)
    return _think(f"{_written(cells)}\nHow many digits are greater than {bound}?", thought, said)


def grid_sum(rng: np.random.Generator, options: Options) -> Sample:
    cells, row = _cells(rng), int(rng.integers(SIDE))
    thought, said = thoughts.sum_thought(cells[row * SIDE : (row + 1) * SIDE], rng=rng, hasty=options.hasty)
    return _think(f"{_written(cells)}\nWhat is the sum of row {row + 1}?", thought, said)


def _think(question: str, thought: str, said: int) -> Sample:
    response = thoughts.boxed(thought, said)
    return Sample(question=question, response=response, answer=str(said), verifier="number", mode="think")


def arithmetic(rng: np.random.Generator, options: Options) -> Sample:
    a, b = (int(i) for i in rng.integers(0, 10, size=2))
    if rng.random() < 0.5:
        a, b = max(a, b), min(a, b)
        question, answer = f"What is {a} - {b}?", str(a - b)
    else:
        question, answer = f"What is {a} + {b}?", str(a + b)
    return Sample(question=question, response=answer, answer=answer, verifier="number")


def language(rng: np.random.Generator, options: Options) -> Sample:
    kind = rng.integers(3)
    if kind == 0:
        pair = OPPOSITES[rng.integers(len(OPPOSITES))]
        word, answer = pair if rng.random() < 0.5 else pair[::-1]
        question = f"What is the opposite of {word}?"
    elif kind == 1:
        answer = " ".join(WORDS[i] for i in rng.permutation(len(WORDS))[:4])
        question = f"Repeat: {answer}"
    else:
        words = [WORDS[i] for i in rng.permutation(len(WORDS))[:3]]
        question, answer = f"Which word is last: {' '.join(words)}?", words[-1]
    return Sample(question=question, response=answer, answer=answer, verifier="exact")


TASKS: dict[str, Callable[[np.random.Generator, Options], Sample]] = {
    "grid_read": grid_read,
    "written_caption": written_caption,
    "grid_lookup": grid_lookup,
    "written_shapes": written_shapes,
    "grid_count": grid_count,
    "grid_sum": grid_sum,
    "arithmetic": arithmetic,
    "language": language,
}
