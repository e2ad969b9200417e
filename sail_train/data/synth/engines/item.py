"""What an engine is asked for, and what it returns.

The facts of an item are plain JSON, enough to derive its answer again without its picture: the tests do, and whoever
doubts a sample can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

LEVELS = ("basic", "simple", "complex")
LANGUAGES = ("en", "zh")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a sample should be."""

    level: str
    """A name in `LEVELS`; what it means stands in the engine's docstring."""
    language: str
    """Of the question, and of the text in the picture: a name in `LANGUAGES`."""

    def say(self, en: str, zh: str) -> str:
        """The one of two wordings that is in the asked language."""
        return zh if self.language == "zh" else en


@dataclass(frozen=True, kw_only=True)
class Item:
    """A picture (or two), a question, and what is true."""

    task: str
    """What is asked, e.g. "read" or "sum"."""
    images: tuple[Image.Image, ...]
    question: str
    answer: str
    verifier: str
    """Name in `sail_train.rewards.VERIFIERS` that grades an answer."""
    thought: str = ""
    """Worked steps that end at the answer; empty where there is nothing to work out (captions, transcriptions)."""
    facts: dict[str, Any] = field(default_factory=dict)


Engine = Callable[[np.random.Generator, Request], Item]


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, with equal odds."""
    return options[int(rng.integers(len(options)))]


def sample(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """`count` different ones of `options`, in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def whole(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return int(rng.integers(low, high + 1))
