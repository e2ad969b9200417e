"""Questions about a chart: each a function that returns None where its answer would not be the only right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from sail_train.data.synth.engines.chart_data import Chart
from sail_train.data.synth.engines.item import Request, pick, sample, whole
from sail_train.data.synth.engines.numbers import decimal, ends, is_tie


@dataclass(frozen=True, kw_only=True)
class Asked:
    task: str
    question: str
    answer: str
    steps: list[str]
    verifier: str = "number"
    given: dict[str, Any] = field(default_factory=dict)
    """What the question is about, by place: enough to answer it from the chart's facts."""


def _of(chart: Chart, request: Request, row: int) -> str:
    """Which series is meant, where there are several."""
    if chart.kind == "scatter":
        return "y"
    if chart.is_single:
        return request.say("the value", "数值")
    return request.say(f'"{chart.series[row]}"', f"“{chart.series[row]}”")


def _at(chart: Chart, request: Request, place: int) -> str:
    name = chart.categories[place]
    if chart.kind == "scatter":
        return request.say(f"x = {name}", f"x={name}")
    return request.say(f'"{name}"', f"“{name}”")


def _reading(chart: Chart, request: Request, row: int, places: list[int]) -> str:
    """The step that reads values off."""
    colon = request.say(": ", "：")
    if chart.kind == "scatter":
        return ", ".join(f"({chart.categories[i]}, {chart.values[row][i]})" for i in places)
    read = ", ".join(f"{chart.categories[i]} {chart.values[row][i]}" for i in places)
    return f"{_of(chart, request, row)}{colon}{read}" if not chart.is_single else read


def _row(rng: np.random.Generator, chart: Chart) -> int:
    return whole(rng, 0, len(chart.series) - 1)


def _places(chart: Chart) -> list[int]:
    return list(range(len(chart.categories)))


def read(rng: np.random.Generator, chart: Chart, request: Request) -> Asked | None:
    row, place = _row(rng, chart), pick(rng, _places(chart))
    value = chart.values[row][place]
    of, at = _of(chart, request, row), _at(chart, request, place)
    return Asked(
        task="read",
        question=request.say(f"In the chart, what is {of} at {at}?", f"图中{at}处，{of}是多少？"),
        answer=str(value),
        steps=[request.say(f"At {at}, {of} is {value}.", f"{at}处，{of}是{value}。")],
        given={"row": row, "place": place},
    )


def extreme(rng: np.random.Generator, chart: Chart, request: Request) -> Asked | None:
    row, highest = _row(rng, chart), bool(rng.random() < 0.5)
    values = chart.values[row]
    best = max(values) if highest else min(values)
    if values.count(best) > 1:
        return None
    name = chart.categories[values.index(best)]
    of = _of(chart, request, row)
    word = request.say("highest", "最大") if highest else request.say("lowest", "最小")
    what = {"scatter": ("At which x", "x为多少时")}.get(chart.kind, ("For which category", "哪一类的"))
    return Asked(
        task="extreme",
        question=request.say(f"{what[0]} is {of} the {word}?", f"图中{what[1]}{of}{word}？"),
        answer=name,
        steps=[
            _reading(chart, request, row, _places(chart)),
            request.say(f"The {word} is {best}: {name}.", f"{word}的是{best}：{name}。"),
        ],
        verifier="number" if chart.kind == "scatter" else "exact",
        given={"row": row, "highest": highest},
    )


def difference(rng: np.random.Generator, chart: Chart, request: Request) -> Asked | None:
    row, places = _row(rng, chart), sorted(sample(rng, _places(chart), 2))
    a, b = (chart.values[row][place] for place in places)
    one, other = (_at(chart, request, place) for place in places)
    of = _of(chart, request, row)
    return Asked(
        task="difference",
        question=request.say(
            f"What is the difference between {one} and {other} in {of}? Give it without a sign.",
            f"图中{one}与{other}的{of}相差多少？",
        ),
        answer=str(abs(a - b)),
        steps=[_reading(chart, request, row, places), f"{max(a, b)} − {min(a, b)} = {abs(a - b)}"],
        given={"row": row, "places": places},
    )


def total(rng: np.random.Generator, chart: Chart, request: Request) -> Asked | None:
    """Of two categories or of all."""
    row, everything = _row(rng, chart), request.level == "complex"
    places = _places(chart) if everything else sorted(sample(rng, _places(chart), 2))
    values = [chart.values[row][place] for place in places]
    of = _of(chart, request, row)
    named = [_at(chart, request, place) for place in places]
    if everything:
        question = request.say(f"What is the sum of {of} over all categories?", f"图中所有类别的{of}之和是多少？")
    else:
        question = request.say(
            f"What is the sum of {of} over {named[0]} and {named[1]}?", f"图中{named[0]}与{named[1]}的{of}之和是多少？"
        )
    steps = [_reading(chart, request, row, places), f"{' + '.join(map(str, values))} = {sum(values)}"]
    return Asked(
        task="sum", question=question, answer=str(sum(values)), steps=steps, given={"row": row, "places": places}
    )


def mean(rng: np.random.Generator, chart: Chart, request: Request) -> Asked | None:
    row = _row(rng, chart)
    values = chart.values[row]
    exact = Fraction(sum(values), len(values))
    if is_tie(exact, 2):
        return None
    rounded = not ends(exact, 2)
    answer = decimal(exact, 2)
    of = _of(chart, request, row)
    steps = [
        _reading(chart, request, row, _places(chart)),
        f"{' + '.join(map(str, values))} = {sum(values)}",
        f"{sum(values)} ÷ {len(values)} {'≈' if rounded else '='} {answer}",
    ]
    question = request.say(
        f"What is the mean of {of} over all categories? Round to two decimal places where it does not end.",
        f"图中所有类别的{of}的平均值是多少？除不尽时保留两位小数。",
    )
    return Asked(task="mean", question=question, answer=answer, steps=steps, given={"row": row})


def count_above(rng: np.random.Generator, chart: Chart, request: Request) -> Asked | None:
    row = _row(rng, chart)
    values = chart.values[row]
    bound = pick(rng, range(chart.step, max(values) + chart.step, chart.step))
    above = [place for place in _places(chart) if values[place] > bound]
    if bound in values:
        return None
    of = _of(chart, request, row)
    things = ("points", "点") if chart.kind == "scatter" else ("categories", "类别")
    listed = ", ".join(chart.categories[place] for place in above) or request.say("none", "无")
    return Asked(
        task="count_above",
        question=request.say(
            f"For how many {things[0]} is {of} greater than {bound}?", f"图中有多少个{things[1]}的{of}大于{bound}？"
        ),
        answer=str(len(above)),
        steps=[
            _reading(chart, request, row, _places(chart)),
            request.say(f"Greater than {bound}: {listed}.", f"大于{bound}的：{listed}。"),
            request.say(f"That makes {len(above)}.", f"一共{len(above)}。"),
        ],
        given={"row": row, "bound": bound},
    )


def share(rng: np.random.Generator, chart: Chart, request: Request) -> Asked | None:
    row, place = _row(rng, chart), pick(rng, _places(chart))
    value, whole_sum = chart.values[row][place], sum(chart.values[row])
    exact = Fraction(100 * value, whole_sum)
    if is_tie(exact, 1):
        return None
    answer, at, of = decimal(exact, 1), _at(chart, request, place), _of(chart, request, row)
    return Asked(
        task="share",
        question=request.say(
            f"Which per cent of the sum of {of} over all categories falls to {at}? Round to one decimal place; "
            "give the number alone.",
            f"{at}的{of}占所有类别之和的百分之多少？保留一位小数，只写数字。",
        ),
        answer=answer,
        steps=[
            _reading(chart, request, row, _places(chart)),
            f"{' + '.join(map(str, chart.values[row]))} = {whole_sum}",
            f"{value} ÷ {whole_sum} × 100 {'=' if ends(exact, 1) else '≈'} {answer}",
        ],
        given={"row": row, "place": place},
    )


def compare(rng: np.random.Generator, chart: Chart, request: Request) -> Asked | None:
    """Which of two series is higher in one category."""
    if len(chart.series) < 2:
        return None
    rows, place = sorted(sample(rng, range(len(chart.series)), 2)), pick(rng, _places(chart))
    a, b = (chart.values[row][place] for row in rows)
    if a == b:
        return None
    one, other = (chart.series[row] for row in rows)
    at = _at(chart, request, place)
    answer = one if a > b else other
    return Asked(
        task="compare",
        question=request.say(f"At {at}, which is higher: {one} or {other}?", f"图中{at}处，{one}和{other}哪个更高？"),
        answer=answer,
        steps=[f"{one}: {a}, {other}: {b}", f"{max(a, b)} > {min(a, b)}: {answer}"],
        verifier="exact",
        given={"rows": rows, "place": place},
    )


def gap(rng: np.random.Generator, chart: Chart, request: Request) -> Asked | None:
    """Where two series are farthest apart."""
    if len(chart.series) < 2:
        return None
    rows = sorted(sample(rng, range(len(chart.series)), 2))
    gaps = [abs(chart.values[rows[0]][place] - chart.values[rows[1]][place]) for place in _places(chart)]
    if gaps.count(max(gaps)) > 1:
        return None
    one, other = (chart.series[row] for row in rows)
    answer = chart.categories[gaps.index(max(gaps))]
    listed = [
        f"{name}: |{chart.values[rows[0]][i]} − {chart.values[rows[1]][i]}| = {gaps[i]}"
        for i, name in enumerate(chart.categories)
    ]
    return Asked(
        task="gap",
        question=request.say(
            f"For which category do {one} and {other} differ most?", f"图中哪一类的{one}与{other}相差最大？"
        ),
        answer=answer,
        steps=[*listed, request.say(f"The largest is {max(gaps)}: {answer}.", f"最大的是{max(gaps)}：{answer}。")],
        verifier="exact",
        given={"rows": rows},
    )


def trend(rng: np.random.Generator, chart: Chart, request: Request) -> Asked | None:
    """How often a line goes up from one point to the next."""
    row = _row(rng, chart)
    values = chart.values[row]
    pairs = list(zip(values, values[1:], strict=False))
    if chart.kind != "line" or any(a == b for a, b in pairs):
        return None
    rises = sum(a < b for a, b in pairs)
    of = _of(chart, request, row)
    shown = ", ".join(f"{a} → {b}" for a, b in pairs if a < b) or request.say("none", "无")
    return Asked(
        task="trend",
        question=request.say(
            f"How many times does {of} rise from one point to the next?", f"图中{of}从一点到下一点上升了多少次？"
        ),
        answer=str(rises),
        steps=[
            _reading(chart, request, row, _places(chart)),
            request.say(f"Rises: {shown}.", f"上升：{shown}。"),
            request.say(f"That makes {rises}.", f"一共{rises}。"),
        ],
        given={"row": row},
    )


Question = Callable[[np.random.Generator, Chart, Request], Asked | None]

QUESTIONS: dict[str, tuple[Question, ...]] = {
    "basic": (read, read, extreme, count_above),
    "simple": (difference, count_above, compare, total, trend, extreme),
    "complex": (total, mean, share, gap, trend, count_above),
}
"""What is asked at each level; values of a box plot or of a scatter plot have no sum that means anything."""
NO_SUMS = {"box": (read, extreme, difference, compare), "scatter": (read, extreme, difference, count_above)}
"""What is asked of these kinds instead, at any level."""


def ask(rng: np.random.Generator, chart: Chart, request: Request) -> Asked:
    """The first of randomly drawn questions that has one right answer; reading a value always has."""
    for _ in range(20):
        asked = pick(rng, NO_SUMS.get(chart.kind, QUESTIONS[request.level]))(rng, chart, request)
        if asked is not None:
            return asked
    found = read(rng, chart, request)
    assert found is not None
    return found
