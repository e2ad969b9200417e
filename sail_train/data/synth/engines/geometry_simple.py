"""The simple geometric problems: a theorem, or a formula with a fraction."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from sail_train.data.synth.engines.figure import Figure
from sail_train.data.synth.engines.geometry_basic import triangle
from sail_train.data.synth.engines.geometry_problem import TRIPLES, Problem, value
from sail_train.data.synth.engines.item import pick, whole
from sail_train.data.synth.engines.numbers import plain


def right_triangle(rng: np.random.Generator) -> Problem:
    """Hypotenuse, or a leg."""
    a, b, c = pick(rng, TRIPLES)
    leg = bool(rng.random() < 0.4)
    points = {"A": (0.0, float(b)), "B": (float(a), 0.0), "C": (0.0, 0.0)}
    sides = {"BC": str(a), "CA": "?" if leg else str(b), "AB": str(c) if leg else "?"}
    answer, verifier = value(Fraction(b if leg else c))
    steps = (
        [f"AC² = AB² − BC² = {c * c} − {a * a} = {b * b}", f"AC = {b}"]
        if leg
        else [f"AB² = AC² + BC² = {b * b} + {a * a} = {c * c}", f"AB = {c}"]
    )
    name = "AC" if leg else "AB"
    return Problem(
        task="right_triangle",
        figure=Figure(points=points, lines=("AB", "BC", "CA"), squares=("ACB",), lengths=tuple(sides.items())),
        asked=(f"How long is {name}?", f"{name}的长度是多少？"),
        steps=steps,
        answer=answer,
        verifier=verifier,
        given={"a": a, "b": b, "c": c, "leg": leg},
    )


def isosceles(rng: np.random.Generator) -> Problem:
    """AC = BC: from the angle at C to those at the base."""
    apex = whole(rng, 20, 60) * 2
    base = (180 - apex) // 2
    answer, verifier = value(Fraction(180 - apex, 2))
    return Problem(
        task="isosceles",
        figure=Figure(
            points=triangle(base, base),
            lines=("AB", "BC", "CA"),
            angles=(("ACB", f"{apex}°"), ("BAC", "?")),
        ),
        asked=("AC and BC are equally long. How many degrees is the angle at A?", "AC=BC。A处的角是多少度？"),
        steps=["∠A = ∠B", f"2 × ∠A = 180° − {apex}° = {180 - apex}°", f"∠A = {answer}°"],
        answer=answer,
        verifier=verifier,
        given={"apex": apex},
    )


def exterior(rng: np.random.Generator) -> Problem:
    a, c = whole(rng, 35, 70), whole(rng, 35, 70)
    answer, verifier = value(Fraction(a + c))
    points = triangle(a, 180 - a - c) | {"D": (15.0, 0.0)}
    return Problem(
        task="exterior",
        figure=Figure(
            points=points,
            lines=("ABD", "BC", "CA"),
            angles=(("BAC", f"{a}°"), ("ACB", f"{c}°"), ("CBD", "?")),
        ),
        asked=("A, B and D lie on a line. How many degrees is angle CBD?", "A、B、D在一条直线上。角CBD是多少度？"),
        steps=["∠CBD = ∠A + ∠C", f"∠CBD = {a}° + {c}° = {answer}°"],
        answer=answer,
        verifier=verifier,
        given={"a": a, "c": c},
    )


def trapezoid(rng: np.random.Generator) -> Problem:
    a, h = whole(rng, 9, 18), whole(rng, 3, 9)
    b = whole(rng, 4, a - 3)
    exact = Fraction((a + b) * h, 2)
    answer, verifier = value(exact)
    left = (a - b) / 2.5
    points = {"A": (0.0, 0.0), "B": (float(a), 0.0), "C": (left + b, float(h)), "D": (left, float(h))}
    points["H"] = (left, 0.0)
    return Problem(
        task="trapezoid",
        figure=Figure(
            points=points,
            lines=("AHB", "BC", "CD", "DA"),
            dashed=("DH",),
            squares=("DHB",),
            lengths=(("AB", f"AB = {a}"), ("CD", str(b)), ("DH", str(h))),
            hidden=("H",),
        ),
        asked=(
            "AB and CD are parallel. What is the area of trapezoid ABCD? Give a reduced fraction or a whole number.",
            "AB与CD平行。梯形ABCD的面积是多少？用最简分数或整数表示。",
        ),
        steps=["S = (AB + CD) × h ÷ 2", f"({a} + {b}) × {h} ÷ 2 = {(a + b) * h} ÷ 2 = {plain(exact)}"],
        answer=answer,
        verifier=verifier,
        given={"a": a, "b": b, "h": h},
    )


def parallelogram(rng: np.random.Generator) -> Problem:
    """The area from a base and its height; the slanted side is not needed."""
    a, (x, h, side) = whole(rng, 14, 24), pick(rng, TRIPLES[:4])
    answer, verifier = value(Fraction(a * h))
    points = {"A": (0.0, 0.0), "B": (float(a), 0.0), "C": (float(a + x), float(h)), "D": (float(x), float(h))}
    points["H"] = (float(x), 0.0)
    return Problem(
        task="parallelogram",
        figure=Figure(
            points=points,
            lines=("AHB", "BC", "CD", "DA"),
            dashed=("DH",),
            squares=("DHB",),
            lengths=(("AB", f"AB = {a}"), ("DH", str(h)), ("BC", str(side))),
            hidden=("H",),
        ),
        asked=("What is the area of parallelogram ABCD?", "平行四边形ABCD的面积是多少？"),
        steps=["S = AB × h", f"{a} × {h} = {answer}"],
        answer=answer,
        verifier=verifier,
        given={"a": a, "h": h},
    )


PROBLEMS = (right_triangle, isosceles, exterior, trapezoid, parallelogram)
