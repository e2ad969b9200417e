r"""What every geometric problem is: a figure, a question in two languages, steps, and an exact answer."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sail_train.data.synth.engines.figure import Figure
from sail_train.data.synth.engines.numbers import decimal, fraction

TRIPLES = ((3, 4, 5), (5, 12, 13), (8, 15, 17), (6, 8, 10), (7, 24, 25), (9, 12, 15), (20, 21, 29))
PI = Fraction(314, 100)


@dataclass(frozen=True, kw_only=True)
class Problem:
    task: str
    figure: Figure
    asked: tuple[str, str]
    """In English and Chinese; lengths are without a unit."""
    steps: list[str]
    """In symbols, which both languages share."""
    answer: str
    verifier: str
    given: dict[str, Any]


def value(exact: Fraction) -> tuple[str, str]:
    """(answer, verifier) of a whole number or a fraction."""
    return fraction(exact), "number" if exact.denominator == 1 else "math"


def pi_decimal(exact: Fraction) -> tuple[str, str]:
    """(answer, verifier) of what was worked out with π = 3.14; it always ends within four decimals."""
    return decimal(exact, 4), "number"


def times_pi(factor: Fraction) -> tuple[str, str]:
    r"""(answer, verifier) of a multiple of π."""
    return (r"\pi" if factor == 1 else rf"{fraction(factor)}\pi"), "math"
