"""The basic geometric problems: one rule each."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from sail_train.data.synth.engines.figure import Figure, polar
from sail_train.data.synth.engines.geometry_problem import PI, Problem, pi_decimal, value
from sail_train.data.synth.engines.item import whole


def triangle(a: int, b: int, size: float = 10.0) -> dict[str, tuple[float, float]]:
    """A, B, C with angles a at A and b at B; AB is `size` long."""
    c = np.radians(180 - a - b)
    side = size * float(np.sin(np.radians(b)) / np.sin(c))
    return {"A": (0.0, 0.0), "B": (size, 0.0), "C": polar((0.0, 0.0), side, a)}


def third_angle(rng: np.random.Generator) -> Problem:
    a, b = whole(rng, 35, 80), whole(rng, 35, 75)
    answer, verifier = value(Fraction(180 - a - b))
    return Problem(
        task="third_angle",
        figure=Figure(
            points=triangle(a, b),
            lines=("AB", "BC", "CA"),
            angles=(("BAC", f"{a}°"), ("ABC", f"{b}°"), ("ACB", "?")),
        ),
        asked=("How many degrees is the angle at C?", "C处的角是多少度？"),
        steps=["∠A + ∠B + ∠C = 180°", f"∠C = 180° − {a}° − {b}° = {answer}°"],
        answer=answer,
        verifier=verifier,
        given={"a": a, "b": b},
    )


def on_a_line(rng: np.random.Generator) -> Problem:
    a = whole(rng, 30, 150)
    answer, verifier = value(Fraction(180 - a))
    points = {"A": (-6.0, 0.0), "O": (0.0, 0.0), "B": (6.0, 0.0), "C": polar((0.0, 0.0), 6.0, a)}
    return Problem(
        task="on_a_line",
        figure=Figure(points=points, lines=("AOB", "OC"), angles=(("BOC", f"{a}°"), ("AOC", "?"))),
        asked=("A, O and B lie on a line. How many degrees is angle AOC?", "A、O、B在一条直线上。角AOC是多少度？"),
        steps=["∠AOC + ∠BOC = 180°", f"∠AOC = 180° − {a}° = {answer}°"],
        answer=answer,
        verifier=verifier,
        given={"a": a},
    )


def rectangle(rng: np.random.Generator) -> Problem:
    a, b, area = whole(rng, 6, 20), whole(rng, 3, 12), bool(rng.random() < 0.5)
    answer, verifier = value(Fraction(a * b if area else 2 * (a + b)))
    points = {"A": (0.0, 0.0), "B": (float(a), 0.0), "C": (float(a), float(b)), "D": (0.0, float(b))}
    word = ("area", "面积") if area else ("perimeter", "周长")
    return Problem(
        task="rectangle",
        figure=Figure(
            points=points,
            lines=("AB", "BC", "CD", "DA"),
            squares=("DAB", "ABC", "BCD", "CDA"),
            lengths=(("AB", str(a)), ("BC", str(b))),
        ),
        asked=(f"What is the {word[0]} of rectangle ABCD?", f"长方形ABCD的{word[1]}是多少？"),
        steps=[f"{a} × {b} = {answer}" if area else f"2 × ({a} + {b}) = {answer}"],
        answer=answer,
        verifier=verifier,
        given={"a": a, "b": b, "area": area},
    )


def circle(rng: np.random.Generator) -> Problem:
    r, area = whole(rng, 2, 15), bool(rng.random() < 0.5)
    answer, verifier = pi_decimal(PI * r * r if area else 2 * PI * r)
    word = ("area", "面积") if area else ("circumference", "周长")
    points = {"O": (0.0, 0.0), "A": polar((0.0, 0.0), float(r), 25)}
    return Problem(
        task="circle",
        figure=Figure(points=points, circles=(("O", float(r)),), lines=("OA",), lengths=(("OA", str(r)),)),
        asked=(f"What is the {word[0]} of the circle? Use π = 3.14.", f"圆的{word[1]}是多少？π取3.14。"),
        steps=[f"π × {r}² = 3.14 × {r * r} = {answer}" if area else f"2 × π × {r} = 6.28 × {r} = {answer}"],
        answer=answer,
        verifier=verifier,
        given={"r": r, "area": area},
    )


PROBLEMS = (third_angle, on_a_line, rectangle, circle)
