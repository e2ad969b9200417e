"""Arithmetic: sums, equations and word problems written in the picture.

basic     sums and differences of numbers up to 99, in a line or in columns
simple    products, quotients, two operations; a x + b = c; word problems of one or two steps
complex   brackets, sums of fractions, x on both sides, two equations, word problems that need an equation

Answers are exact: whole numbers, or reduced fractions. A thought takes one step a line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sail_train.data.synth.engines import expressions, stories
from sail_train.data.synth.engines.fonts import LATIN, face, load
from sail_train.data.synth.engines.item import Item, Request, pick, whole
from sail_train.data.synth.engines.numbers import fraction, plain
from sail_train.data.synth.engines.text import joined, wrap

WRITES = True


@dataclass(frozen=True, kw_only=True)
class Exercise:
    task: str
    lines: tuple[str, ...]
    """What is written, line by line; columns are aligned at the right."""
    answer: Fraction
    steps: list[str]
    asked: tuple[str, str]
    """In English and Chinese."""
    facts: dict[str, Any] = field(default_factory=dict)
    columns: bool = False


CALCULATE = ("Work out the value of what is written in the image.", "计算图中算式的值。")
SOLVE = ("Solve the equation in the image for x.", "解图中的方程，求x的值。")
SYSTEM = ("Solve the two equations in the image. What is x?", "解图中的方程组，x是多少？")
STORY = ("Solve the problem in the image.", "解答图中的题目。")
FRACTION = (" Give a reduced fraction or a whole number.", "答案用最简分数或整数表示。")


def make(rng: np.random.Generator, request: Request) -> Item:
    exercise = pick(rng, KINDS[request.level])(rng, request)
    fractional = exercise.answer.denominator > 1
    hint = (
        FRACTION
        if exercise.task in ("expression", "fractions", "both_sides") and request.level == "complex"
        else ("", "")
    )
    return Item(
        task=exercise.task,
        images=(_written(rng, request, exercise),),
        question=request.say(exercise.asked[0] + hint[0], exercise.asked[1] + hint[1]),
        thought="\n".join(exercise.steps),
        answer=fraction(exercise.answer),
        verifier="math" if fractional else "number",
        facts={"lines": list(exercise.lines), **exercise.facts},
    )


def _sum(rng: np.random.Generator, request: Request) -> Exercise:
    a, b = sorted((whole(rng, 2, 99), whole(rng, 2, 99)), reverse=True)
    sign = pick(rng, "+-")
    tree = (sign, a, b)
    columns = rng.random() < 0.5
    lines = (str(a), f"{sign} {b}") if columns else (f"{expressions.shown(tree)} =",)
    return Exercise(
        task="columns" if columns else "line",
        lines=tuple(line.replace("-", "−") for line in lines),
        answer=expressions.value(tree),
        steps=expressions.steps(tree),
        asked=CALCULATE,
        facts={"expression": expressions.shown(tree)},
        columns=columns,
    )


def _expression(rng: np.random.Generator, request: Request) -> Exercise:
    tree = (expressions.nested if request.level == "complex" else expressions.flat)(rng)
    return Exercise(
        task="expression",
        lines=(f"{expressions.shown(tree)} =",),
        answer=expressions.value(tree),
        steps=expressions.steps(tree),
        asked=CALCULATE,
        facts={"expression": expressions.shown(tree)},
    )


def _fractions(rng: np.random.Generator, request: Request) -> Exercise:
    """p/q + r/s over a common denominator."""
    sign = pick(rng, "+-")
    q, s = whole(rng, 2, 9), whole(rng, 2, 9)
    one, other = Fraction(whole(rng, 1, 9), q), Fraction(whole(rng, 1, 9), s)
    one, other = max(one, other), min(one, other)
    below = one.denominator * other.denominator
    left, right = int(one * below), int(other * below)
    answer = one + other if sign == "+" else one - other
    top = left + right if sign == "+" else left - right
    show = sign.replace("-", "−")
    steps = [f"{plain(one)} {show} {plain(other)}", f"= {left}/{below} {show} {right}/{below}", f"= {top}/{below}"]
    if plain(answer) != f"{top}/{below}":
        steps.append(f"= {plain(answer)}")
    line = f"{plain(one)} {show} {plain(other)}"
    return Exercise(
        task="fractions",
        lines=(f"{line} =",),
        answer=answer,
        steps=steps,
        asked=CALCULATE,
        facts={"expression": line},
    )


def _linear(rng: np.random.Generator, request: Request) -> Exercise:
    """a x + b = c with a whole solution."""
    a, x, b = whole(rng, 2, 9), whole(rng, 1, 12), whole(rng, 1, 20) * pick(rng, (1, -1))
    c = a * x + b
    line = f"{a}x {_signed(b)} = {c}".replace("-", "−")
    steps = [line, f"{a}x = {c} {_signed(-b)} = {c - b}".replace("-", "−"), f"x = {c - b} ÷ {a} = {x}"]
    return Exercise(
        task="equation", lines=(line,), answer=Fraction(x), steps=steps, asked=SOLVE, facts={"equations": [line]}
    )


def _both_sides(rng: np.random.Generator, request: Request) -> Exercise:
    """a x + b = c x + d; the solution may be a fraction."""
    a, c = whole(rng, 4, 9), whole(rng, 1, 3)
    b, d = whole(rng, 1, 20) * pick(rng, (1, -1)), whole(rng, 1, 30)
    line = f"{a}x {_signed(b)} = {'' if c == 1 else c}x {_signed(d)}"
    answer = Fraction(d - b, a - c)
    steps = [
        line,
        f"{a}x - {'' if c == 1 else c}x = {d} {_signed(-b)}",
        f"{'' if a - c == 1 else a - c}x = {d - b}",
        f"x = {plain(answer)}",
    ]
    # with x alone on the left the last two lines are one
    steps = [step.replace("-", "−") for step in dict.fromkeys(steps)]
    shown = line.replace("-", "−")
    return Exercise(
        task="both_sides", lines=(shown,), answer=answer, steps=steps, asked=SOLVE, facts={"equations": [shown]}
    )


def _system(rng: np.random.Generator, request: Request) -> Exercise:
    """a x + y = p and b x - y = q: added, y falls out."""
    x, y, a, b = whole(rng, 1, 12), whole(rng, 1, 12), whole(rng, 1, 6), whole(rng, 1, 6)
    p, q = a * x + y, b * x - y
    left, right = "x" if a == 1 else f"{a}x", "x" if b == 1 else f"{b}x"
    lines = (f"{left} + y = {p}", f"{right} − y = {q}".replace("-", "−"))
    total = request.say("Adding both equations", "两式相加")
    steps = [f"{total}: {a + b}x = {p + q}".replace("-", "−"), f"x = {p + q} ÷ {a + b} = {x}"]
    return Exercise(
        task="system",
        lines=lines,
        answer=Fraction(x),
        steps=steps,
        asked=SYSTEM,
        facts={"equations": list(lines), "y": y},
    )


def _story(rng: np.random.Generator, request: Request) -> Exercise:
    story = stories.tell(rng, request)
    return Exercise(
        task="story",
        lines=(story.text,),
        answer=story.answer,
        steps=story.steps,
        asked=STORY,
        facts={"story": story.name, "given": story.given},
    )


KINDS: dict[str, tuple[Callable[[np.random.Generator, Request], Exercise], ...]] = {
    "basic": (_sum,),
    "simple": (_expression, _linear, _story),
    "complex": (_expression, _fractions, _both_sides, _system, _story),
}


def _signed(number: int) -> str:
    return f"{'+' if number >= 0 else '-'} {abs(number)}"


def _written(rng: np.random.Generator, request: Request, exercise: Exercise) -> Image.Image:
    """The lines on paper, in a font of random style and size."""
    story = exercise.task == "story"
    language = request.language if story else "en"
    size = whole(rng, 20, 26) if story else whole(rng, 30, 52)
    style = "mono" if exercise.columns else pick(rng, list(LATIN))
    font = load(face(language, style), size)
    lines = list(exercise.lines)
    if story:
        lines = [joined(line, language) for line in wrap(lines[0], font, whole(rng, 380, 520), language)]
    wide, high = max(font.getlength(line) for line in lines), round(size * 1.5)
    margin = whole(rng, 18, 40)
    height = high * (len(lines) + exercise.columns) + 2 * margin
    paper = tuple(int(level) for level in rng.integers(235, 256, size=3))
    image = Image.new("RGB", (round(wide) + 2 * margin, height), paper)
    pen = ImageDraw.Draw(image)
    ink = pick(rng, ((20, 20, 20), (20, 40, 120), (110, 30, 30)))
    for number, line in enumerate(lines):
        left = margin + (wide - font.getlength(line) if exercise.columns else 0)
        pen.text((left, margin + number * high), line, font=font, fill=ink)
    if exercise.columns:
        below = margin + len(lines) * high + 2
        pen.line((margin, below, margin + wide, below), fill=ink, width=2)
    return image
