"""Expressions as trees, (operator, left, right) with numbers at the leaves: drawn, written, worked out in steps."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from sail_train.data.synth.engines.item import pick, whole
from sail_train.data.synth.engines.numbers import plain

Tree = Any
"""int, Fraction or (operator, Tree, Tree) with an operator of + - * /."""

SIGNS = {"+": "+", "-": "−", "*": "×", "/": "÷"}
_RANK = {"+": 0, "-": 0, "*": 1, "/": 1}
_APPLY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def value(tree: Tree) -> Fraction:
    if not isinstance(tree, tuple):
        return Fraction(tree)
    return _APPLY[tree[0]](value(tree[1]), value(tree[2]))


def shown(tree: Tree) -> str:
    """With as many brackets as it takes to be read as this tree."""
    if not isinstance(tree, tuple):
        text = plain(Fraction(tree)).replace("-", "−")
        return f"({text})" if text[0] == "−" or "/" in text else text
    sign, left, right = tree
    return f"{_part(left, sign, after=False)} {SIGNS[sign]} {_part(right, sign, after=True)}"


def _part(tree: Tree, sign: str, *, after: bool) -> str:
    text = shown(tree)
    if not isinstance(tree, tuple):
        return text
    weaker = _RANK[tree[0]] < _RANK[sign]
    return f"({text})" if weaker or (after and _RANK[tree[0]] == _RANK[sign]) else text


def steps(tree: Tree) -> list[str]:
    """The expression, and one line for each operation: the first that has nothing left to work out inside."""
    lines = [shown(tree)]
    while isinstance(tree, tuple):
        tree = _reduced(tree)
        lines.append(f"= {shown(tree) if isinstance(tree, tuple) else plain(Fraction(tree)).replace('-', '−')}")
    return lines


def _reduced(tree: Tree) -> Tree:
    sign, left, right = tree
    if isinstance(left, tuple):
        return (sign, _reduced(left), right)
    if isinstance(right, tuple):
        return (sign, left, _reduced(right))
    return value(tree)


def flat(rng: np.random.Generator) -> Tree:
    """A product, a quotient that comes out whole, or one of them with a sum."""
    a, b, c = whole(rng, 2, 12), whole(rng, 2, 12), whole(rng, 2, 30)
    inner = ("*", a, b) if rng.random() < 0.6 else ("/", a * b, b)
    kind = whole(rng, 0, 2)
    if kind == 0:
        return inner
    if kind == 1:
        return ("+", c, inner)
    return ("-", inner, c) if value(inner) >= c else ("+", inner, c)


def nested(rng: np.random.Generator) -> Tree:
    """Three or four operations with brackets; whole or a fraction."""
    a, b, c, d = (whole(rng, 2, 12) for _ in range(4))
    inside = (pick(rng, "+-"), max(a, b) + 1, min(a, b))
    outside = ("*", inside, c) if rng.random() < 0.5 else ("/", inside, c)
    tree = (pick(rng, "+-"), outside, d)
    return tree if rng.random() < 0.5 else ("+", tree, ("*", whole(rng, 2, 9), whole(rng, 2, 9)))
