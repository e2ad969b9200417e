"""Arithmetic, geometry and documents: worked out again from the facts, figures measured, pages read back."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from sail_train.data.synth.engines import arithmetic, document, expressions, geometry
from sail_train.data.synth.engines.document_page import WEAR, Page, distort
from sail_train.data.synth.engines.item import LEVELS, Item, Request
from sail_train.data.synth.engines.numbers import decimal, ends, fraction, is_tie
from sail_train.data.synth.engines.text import words, wrap

BOX = re.compile(r"<bbox>(\d+) (\d+) (\d+) (\d+)</bbox>")
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def items(module: Any, level: str, count: int = 30) -> list[Item]:
    return [module.make(np.random.default_rng([3, i]), Request(level=level, language="en")) for i in range(count)]


def exact(answer: str) -> Fraction:
    r"""3, 2.5, \frac{7}{2} or -\frac{7}{2} -> its value."""
    found = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", answer)
    if not found:
        return Fraction(answer)
    value = Fraction(int(found[2]), int(found[3]))
    assert value.denominator == int(found[3]), "reduced"
    return -value if found[1] else value


def worked_out(text: str, **names: Fraction) -> Fraction:
    """What a calculator makes of the written expression, read by Python's grammar."""
    text = text.replace("−", "-").replace("×", "*").replace("÷", "/")
    text = re.sub(r"(\d)([a-z])", r"\1*\2", text)

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        if isinstance(node, ast.Name):
            return names[node.id]
        assert isinstance(node, ast.Constant)
        return Fraction(node.value)

    return value(ast.parse(text.strip(), mode="eval").body)


STORIES: dict[str, Callable[[dict[str, int]], Fraction]] = {
    "change": lambda g: Fraction(g["paid"] - g["count"] * g["price"]),
    "left_over": lambda g: Fraction(g["total"] - g["boxes"] * g["each"]),
    "journey": lambda g: Fraction(g["v"] * g["s"] + g["w"] * g["t"]),
    "discount": lambda g: Fraction(g["price"] * (100 - g["off"]), 100) + g["more"],
    "shares": lambda g: Fraction(g["total"] - g["more"], g["times"] + 1),
    "meeting": lambda g: Fraction(60 * g["distance"], g["v"] + g["w"]),
}


@pytest.mark.parametrize("level", LEVELS)
def test_arithmetic_comes_out_as_recorded(level: str) -> None:
    for item in items(arithmetic, level, 60):
        answer, facts = exact(item.answer), item.facts
        if item.task == "story":
            assert answer == STORIES[facts["story"]](facts["given"]) and answer > 0
            assert all(str(number) in facts["lines"][0] for number in facts["given"].values())
        elif "equations" in facts:
            names = {"x": answer, "y": Fraction(facts.get("y", 0))}
            for equation in facts["equations"]:
                left, right = equation.split("=")
                assert worked_out(left, **names) == worked_out(right, **names)
        else:
            assert answer == worked_out(facts["expression"])
            written = " ".join(facts["lines"]).removesuffix("=").strip()
            assert worked_out(written) == answer, "what is written is what was worked out"


@pytest.mark.parametrize("level", LEVELS)
def test_every_step_of_an_expression_has_the_same_value(level: str) -> None:
    for item in items(arithmetic, level, 60):
        if "expression" in item.facts:
            values = {worked_out(line.removeprefix("=")) for line in item.thought.splitlines()}
            assert values == {exact(item.answer)}, item.thought


def test_brackets_stand_where_they_are_needed() -> None:
    assert expressions.shown(("-", 9, ("-", 5, 2))) == "9 − (5 − 2)"
    assert expressions.shown(("*", ("+", 1, 2), 3)) == "(1 + 2) × 3"
    assert expressions.shown(("+", ("*", 1, 2), 3)) == "1 × 2 + 3"
    assert expressions.shown(("-", Fraction(1, 2), -3)) == "(1/2) − (−3)"


def test_numbers_are_rounded_only_where_that_is_no_matter_of_taste() -> None:
    assert [decimal(Fraction(x), 2) for x in ("1", "0.5", "-0.25", "2/3", "10")] == ["1", "0.5", "-0.25", "0.67", "10"]
    assert decimal(Fraction(7, 2), 1) == "3.5" and decimal(Fraction(20), 0) == "20"
    assert is_tie(Fraction("0.125"), 2) and not ends(Fraction(1, 3), 5)
    with pytest.raises(ValueError, match="half way between two decimals of 2 places"):
        decimal(Fraction("0.125"), 2)
    assert [fraction(Fraction(x)) for x in ("3", "-6/4")] == ["3", r"-\frac{3}{2}"]


PI = Fraction(157, 50)
GEOMETRY: dict[str, Callable[[dict[str, Any]], Fraction]] = {
    "third_angle": lambda g: Fraction(180 - g["a"] - g["b"]),
    "on_a_line": lambda g: Fraction(180 - g["a"]),
    "rectangle": lambda g: Fraction(g["a"] * g["b"] if g["area"] else 2 * g["a"] + 2 * g["b"]),
    "circle": lambda g: PI * g["r"] ** 2 if g["area"] else 2 * PI * g["r"],
    "right_triangle": lambda g: Fraction(
        math.isqrt(g["c"] ** 2 - g["a"] ** 2) if g["leg"] else math.isqrt(g["a"] ** 2 + g["b"] ** 2)
    ),
    "isosceles": lambda g: Fraction(180 - g["apex"], 2),
    "exterior": lambda g: Fraction(g["a"] + g["c"]),
    "trapezoid": lambda g: Fraction(g["a"] + g["b"], 2) * g["h"],
    "parallelogram": lambda g: Fraction(g["a"] * g["h"]),
    "inscribed": lambda g: Fraction(180 - 2 * g["c"], 2),
    "similar": lambda g: Fraction(g["de"], 1) * Fraction(g["ad"] + g["db"], g["ad"]),
    "sector": lambda g: Fraction(g["angle"], 360) * (g["r"] ** 2 if g["area"] else 2 * g["r"]),
    "chord": lambda g: Fraction(2 * math.isqrt(g["r"] ** 2 - g["d"] ** 2)),
    "semicircle_angle": lambda g: Fraction(math.isqrt(g["a"] ** 2 + g["b"] ** 2), 2),
    "composite": lambda g: g["w"] * g["h"] + PI * Fraction(g["w"], 2) ** 2 / 2,
}


@pytest.mark.parametrize("level", LEVELS)
def test_geometry_comes_out_as_recorded(level: str) -> None:
    seen = set()
    for item in items(geometry, level, 45):
        seen.add(item.task)
        factor = item.answer.removesuffix(r"\pi") or "1"
        assert exact(factor) == GEOMETRY[item.task](item.facts["given"]), (item.task, item.answer)
        assert item.answer.endswith(r"\pi") == (r"\pi" in item.question)
    assert len(seen) == len(geometry.PROBLEMS[level]), "every problem comes up"


def measured(points: dict[str, list[float]], names: str) -> float:
    """Degrees of the angle at the middle letter."""
    a, vertex, b = (np.array(points[name]) for name in names)
    cos = (a - vertex) @ (b - vertex) / np.linalg.norm(a - vertex) / np.linalg.norm(b - vertex)
    return math.degrees(math.acos(max(-1.0, min(1.0, float(cos)))))


@pytest.mark.parametrize("level", LEVELS)
def test_a_figure_is_what_its_labels_say(level: str) -> None:
    """Angles, right angles, lengths in one unit, and the value that is asked for."""
    for item in items(geometry, level, 45):
        figure = item.facts["figure"]
        points = figure["points"]
        for names, text in figure["angles"]:
            wanted = float(item.answer) if text == "?" else float(text.removesuffix("°"))
            assert measured(points, names) == pytest.approx(wanted, abs=0.01), (item.task, names)
        for names in figure["squares"]:
            assert measured(points, names) == pytest.approx(90, abs=0.01)
        for names, text in figure["lengths"]:
            number = exact(item.answer) if text == "?" else Fraction(text.partition("=")[2] or text)
            length = math.dist(points[names[0]], points[names[-1]])
            assert length == pytest.approx(float(number), rel=1e-5), (item.task, names)
        for centre, radius in figure["circles"]:
            on = [name for name in points if name in "ABC" and name != centre]
            assert all(math.dist(points[centre], points[name]) == pytest.approx(radius, rel=1e-5) for name in on)


@pytest.mark.parametrize("level", LEVELS)
def test_names_and_labels_stay_on_the_paper(level: str) -> None:
    """The rim of the picture is bare: nothing was cut off."""
    for item in items(geometry, level, 25):
        pixels = np.asarray(item.images[0]).astype(int)
        for rim in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert np.abs(rim - pixels[0, 0]).max() <= 2, item.task


def text_of(facts: dict[str, Any], block: int) -> str:
    return " ".join(word["text"] for word in facts["words"] if word["block"] == block)


def box_of(facts: dict[str, Any], block: int) -> list[int]:
    boxes = np.array([word["box"] for word in facts["words"] if word["block"] == block])
    return [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]


@pytest.mark.parametrize("level", LEVELS)
def test_documents_say_what_was_recorded(level: str) -> None:
    tasks = set()
    for item in items(document, level, 30):
        facts = item.facts
        tasks.add(item.task)
        if item.task in ("transcribe", "lookup"):
            assert item.answer == text_of(facts, facts["block"])
        elif item.task == "sum":
            assert Fraction(item.answer) == sum(Fraction(text_of(facts, block)) for block in facts["blocks"])
        elif item.task == "find":
            everything = " ".join(word["text"] for word in facts["words"])
            assert everything.count(facts["text"]) == 1, "it stands there once"
            assert list(map(int, BOX.findall(item.answer)[0])) == box_of(facts, facts["block"])
        else:
            found = [facts["words"][place] for place in facts["places"]]
            assert [list(map(int, box)) for box in BOX.findall(item.answer)] == [word["box"] for word in found]
            assert BOX.sub("", item.answer).split() == [word["text"] for word in found]
    wanted = {"transcribe", "words", "lookup", "find"} | ({"sum"} if level != "basic" else set())
    assert tasks == wanted


@pytest.mark.parametrize("level", LEVELS)
def test_ink_lies_in_the_boxes_and_nothing_is_cut_off(level: str) -> None:
    for item in items(document, level, 10):
        grey = np.asarray(item.images[0].convert("L")).astype(int)
        height, width = grey.shape
        for word in item.facts["words"]:
            x1, y1, x2, y2 = (round(v * side / 999) for v, side in zip(word["box"], (width, height) * 2, strict=True))
            assert 0 < x1 < x2 < width and 0 < y1 < y2 < height
            paper = np.median(grey[max(y1 - 6, 0) : y2 + 6, max(x1 - 6, 0) : x2 + 6])
            assert grey[y1:y2, x1:x2].min() < paper - 50, word


def test_levels_wear_pages_differently() -> None:
    looks = {}
    for level in LEVELS:
        page = Page(np.random.default_rng(1), Request(level=level, language="en"), 300, 120)
        page.write("hello world", (page.margin, page.margin), 900)
        image, moved = distort(page, np.random.default_rng(2), WEAR[level])
        looks[level] = (image.tobytes(), moved == page.words)
    assert len({pixels for pixels, _ in looks.values()}) == 3
    assert [same for _, same in looks.values()] == [True, False, False], "boxes turn with the page"


def test_lines_break_between_words_and_chinese_between_characters() -> None:
    assert words("It is 12:30.", "en") == ["It", "is", "12:30."]
    assert words("共有38人，到场。", "zh") == ["共", "有", "38", "人，", "到", "场。"]

    class Font:
        def getlength(self, text: str) -> float:
            return 10.0 * len(text)

    font: Any = Font()
    assert wrap("aa bb cc", font, 50, "en") == [["aa", "bb"], ["cc"]]
    assert wrap("aaaaaaaaa b", font, 50, "en") == [["aaaaaaaaa"], ["b"]]
    assert wrap("一二三四五六", font, 50, "zh") == [list("一二三四五"), ["六"]]
