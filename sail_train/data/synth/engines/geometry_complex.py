r"""The complex geometric problems: several steps, circles, multiples of \pi."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from sail_train.data.synth.engines.figure import Figure, polar
from sail_train.data.synth.engines.geometry_problem import PI, TRIPLES, Problem, pi_decimal, times_pi, value
from sail_train.data.synth.engines.item import pick, whole
from sail_train.data.synth.engines.numbers import plain

EXACT = ("Give a reduced fraction or a whole number.", "用最简分数或整数表示。")
IN_PI = (r"Give the exact value as a multiple of \pi.", r"用含\pi的式子表示准确值。")
CENTRE = (0.0, 0.0)


def inscribed(rng: np.random.Generator) -> Problem:
    """From an inscribed angle to the base angle of the triangle over the same chord."""
    c = whole(rng, 30, 75)
    answer, verifier = value(Fraction(90 - c))
    points = {"O": CENTRE, "A": polar(CENTRE, 5, 270 - c), "B": polar(CENTRE, 5, 270 + c)}
    points["C"] = polar(CENTRE, 5, whole(rng, 70, 110))
    return Problem(
        task="inscribed",
        figure=Figure(
            points=points,
            lines=("AC", "CB", "OA", "OB", "AB"),
            circles=(("O", 5.0),),
            angles=(("ACB", f"{c}°"), ("OAB", "?")),
        ),
        asked=("O is the centre of the circle. How many degrees is angle OAB?", "O是圆心。角OAB是多少度？"),
        steps=[
            f"∠AOB = 2 × ∠ACB = 2 × {c}° = {2 * c}°",
            "OA = OB, ∠OAB = ∠OBA",
            f"∠OAB = (180° − {2 * c}°) ÷ 2 = {answer}°",
        ],
        answer=answer,
        verifier=verifier,
        given={"c": c},
    )


def similar(rng: np.random.Generator) -> Problem:
    """DE parallel to BC."""
    ad, db, de = whole(rng, 3, 9), whole(rng, 2, 9), whole(rng, 3, 9)
    exact = Fraction(de * (ad + db), ad)
    answer, verifier = value(exact)
    ab = ad + db
    # B and C level, A above: AB is as long as given, and BC as it follows
    tilt = whole(rng, 50, 75)
    b = polar(CENTRE, ab, 180 + tilt)
    c = (b[0] + float(exact), b[1])
    share = ad / ab
    points = {"A": CENTRE, "B": b, "C": c, "D": (b[0] * share, b[1] * share), "E": (c[0] * share, c[1] * share)}
    return Problem(
        task="similar",
        figure=Figure(
            points=points,
            lines=("ADB", "BC", "AEC", "DE"),
            lengths=(("AD", str(ad)), ("DB", str(db)), ("DE", f"DE = {de}"), ("BC", "?")),
        ),
        asked=(f"DE is parallel to BC. How long is BC? {EXACT[0]}", f"DE与BC平行。BC的长度是多少？{EXACT[1]}"),
        steps=["BC : DE = AB : AD", f"AB = {ad} + {db} = {ab}", f"BC = {de} × {ab} ÷ {ad} = {plain(exact)}"],
        answer=answer,
        verifier=verifier,
        given={"ad": ad, "db": db, "de": de},
    )


def sector(rng: np.random.Generator) -> Problem:
    """Area of a sector, or length of its arc."""
    r, angle, area = whole(rng, 3, 12), whole(rng, 3, 12) * 10, bool(rng.random() < 0.5)
    factor = Fraction(angle, 360) * (r * r if area else 2 * r)
    answer, verifier = times_pi(factor)
    points = {"O": CENTRE, "A": polar(CENTRE, r, 0), "B": polar(CENTRE, r, angle)}
    what = ("area of the sector", "扇形的面积") if area else ("length of the arc AB", "弧AB的长")
    step = f"{angle}/360 × π × {r}²" if area else f"{angle}/360 × 2 × π × {r}"
    return Problem(
        task="sector",
        figure=Figure(
            points=points,
            lines=("OA", "OB"),
            arcs=(("O", "A", "B"),),
            angles=(("AOB", f"{angle}°"),),
            lengths=(("OA", str(r)),),
        ),
        asked=(f"What is the {what[0]}? {IN_PI[0]}", f"{what[1]}是多少？{IN_PI[1]}"),
        steps=[f"{step} = {plain(factor)} × π"],
        answer=answer,
        verifier=verifier,
        given={"r": r, "angle": angle, "area": area},
    )


def chord(rng: np.random.Generator) -> Problem:
    """Length of a chord from the radius and its distance from the centre."""
    d, half, r = pick(rng, TRIPLES[:6])
    answer, verifier = value(Fraction(2 * half))
    points = {"O": CENTRE, "A": (-float(half), -float(d)), "B": (float(half), -float(d)), "M": (0.0, -float(d))}
    return Problem(
        task="chord",
        figure=Figure(
            points=points,
            lines=("AMB", "OA"),
            dashed=("OM",),
            circles=(("O", float(r)),),
            squares=("OMB",),
            lengths=(("OA", str(r)), ("OM", str(d))),
        ),
        asked=("O is the centre of the circle. How long is the chord AB?", "O是圆心。弦AB的长度是多少？"),
        steps=[f"AM² = OA² − OM² = {r * r} − {d * d} = {half * half}", f"AM = {half}", f"AB = 2 × {half} = {answer}"],
        answer=answer,
        verifier=verifier,
        given={"d": d, "r": r},
    )


def semicircle_angle(rng: np.random.Generator) -> Problem:
    """AB is a diameter, so C has a right angle: the radius from the two legs."""
    a, b, c = pick(rng, TRIPLES)
    exact = Fraction(c, 2)
    answer, verifier = value(exact)
    angle = 2 * float(np.degrees(np.arctan2(a, b)))  # of the arc BC over the angle at A
    points = {"A": (-c / 2, 0.0), "B": (c / 2, 0.0), "O": CENTRE, "C": polar(CENTRE, c / 2, angle)}
    return Problem(
        task="semicircle_angle",
        figure=Figure(
            points=points,
            lines=("AOB", "BC", "CA"),
            circles=(("O", c / 2),),
            lengths=(("BC", str(a)), ("CA", str(b))),
        ),
        asked=(
            f"AB is a diameter of the circle. What is the circle's radius? {EXACT[0]}",
            f"AB是圆的直径。圆的半径是多少？{EXACT[1]}",
        ),
        steps=["∠ACB = 90°", f"AB² = {b * b} + {a * a} = {c * c}", f"AB = {c}", f"{c} ÷ 2 = {plain(exact)}"],
        answer=answer,
        verifier=verifier,
        given={"a": a, "b": b},
    )


def composite(rng: np.random.Generator) -> Problem:
    """A rectangle with a semicircle on top."""
    r, h = whole(rng, 2, 8), whole(rng, 3, 14)
    w = 2 * r
    half = PI * r * r / 2
    answer, verifier = pi_decimal(w * h + half)
    points = {"A": (0.0, 0.0), "B": (float(w), 0.0), "C": (float(w), float(h)), "D": (0.0, float(h))}
    points["O"] = (float(r), float(h))
    return Problem(
        task="composite",
        figure=Figure(
            points=points,
            lines=("AB", "BC", "DA"),
            dashed=("DC",),
            arcs=(("O", "C", "D"),),
            squares=("DAB", "ABC"),
            lengths=(("AB", str(w)), ("BC", str(h))),
            hidden=("O",),
        ),
        asked=(
            "A semicircle stands on rectangle ABCD. What is the area of the whole figure? Use π = 3.14.",
            "长方形ABCD上方有一个半圆。整个图形的面积是多少？π取3.14。",
        ),
        steps=[
            f"{w} × {h} = {w * h}",
            f"{w} ÷ 2 = {r}, π × {r}² ÷ 2 = {pi_decimal(half)[0]}",
            f"{w * h} + {pi_decimal(half)[0]} = {answer}",
        ],
        answer=answer,
        verifier=verifier,
        given={"w": w, "h": h},
    )


PROBLEMS = (inscribed, similar, sector, chord, semicircle_angle, composite)
