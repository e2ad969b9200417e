"""Charts: answers out of the facts again, values where the picture shows them, one right answer each."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from sail_train.data.synth.engines import fonts
from sail_train.data.synth.engines.chart import make
from sail_train.data.synth.engines.chart_ask import NO_SUMS, QUESTIONS, count_above, extreme, mean, share
from sail_train.data.synth.engines.chart_data import KINDS, Chart, draw_data
from sail_train.data.synth.engines.chart_draw import DRAW, draw, draw_style
from sail_train.data.synth.engines.item import LEVELS, Item, Request

PLACES = {"share": 1, "mean": 2}


@lru_cache(maxsize=3)
def items(level: str) -> list[Item]:
    return [make(np.random.default_rng([9, index]), Request(level=level, language="en")) for index in range(30)]


def row(facts: dict[str, Any]) -> list[int]:
    return facts["chart"]["values"][facts["asked"]["row"]]


def rows(facts: dict[str, Any]) -> list[list[int]]:
    return [facts["chart"]["values"][place] for place in facts["asked"]["rows"]]


def rounded(value: Fraction, places: int) -> str:
    low = Fraction(int(value * 10**places), 10**places)
    high = low + Fraction(1, 10**places)
    assert value - low != high - value, "a tie has two right answers"
    return f"{float(low if value - low < high - value else high):.{places}f}"


def best(facts: dict[str, Any]) -> str:
    wanted = (max if facts["asked"]["highest"] else min)(row(facts))
    found = [name for name, value in zip(facts["chart"]["categories"], row(facts), strict=True) if value == wanted]
    assert len(found) == 1
    return found[0]


def widest(facts: dict[str, Any]) -> str:
    gaps = [abs(a - b) for a, b in zip(*rows(facts), strict=True)]
    assert gaps.count(max(gaps)) == 1
    return facts["chart"]["categories"][gaps.index(max(gaps))]


def higher(facts: dict[str, Any]) -> str:
    one, other = (values[facts["asked"]["place"]] for values in rows(facts))
    assert one != other
    return facts["chart"]["series"][facts["asked"]["rows"][0 if one > other else 1]]


TRUTH: dict[str, Callable[[dict[str, Any]], str]] = {
    "read": lambda facts: str(row(facts)[facts["asked"]["place"]]),
    "extreme": best,
    "difference": lambda facts: str(abs(np.diff([row(facts)[i] for i in facts["asked"]["places"]]).item())),
    "sum": lambda facts: str(sum(row(facts)[i] for i in facts["asked"]["places"])),
    "mean": lambda facts: rounded(Fraction(statistics.fmean(row(facts))).limit_denominator(1000), 2),
    "count_above": lambda facts: str(len([value for value in row(facts) if value > facts["asked"]["bound"]])),
    "share": lambda facts: rounded(Fraction(100 * row(facts)[facts["asked"]["place"]], sum(row(facts))), 1),
    "compare": higher,
    "gap": widest,
    "trend": lambda facts: str(int((np.diff(row(facts)) > 0).sum())),
}


@pytest.mark.parametrize("level", LEVELS)
def test_answers_follow_from_the_facts(level: str) -> None:
    tasks = set()
    for item in items(level):
        tasks.add(item.task)
        if item.task in ("caption", "table"):
            continue
        truth = TRUTH[item.task](item.facts)
        if item.verifier == "number":
            assert Fraction(item.answer) == Fraction(truth), (item.question, item.answer, truth)
        else:
            assert item.answer == truth
        assert item.thought.rstrip(".").endswith(item.answer), item.thought
    assert {"caption", "table"} & tasks and len(tasks) >= 4


@pytest.mark.parametrize("level", LEVELS)
def test_captions_and_tables_hold_all_the_data(level: str) -> None:
    for item in items(level):
        chart = item.facts["chart"]
        for name, values in zip(chart["series"], chart["values"], strict=True):
            listed = ", ".join(f"{at} {value}" for at, value in zip(chart["categories"], values, strict=True))
            assert listed in item.facts["caption"] and (len(chart["series"]) == 1 or name in item.facts["caption"])
        if item.task == "table":
            read = json.loads(item.answer)
            assert list(read["series"].values()) == chart["values"] and read["categories"] == chart["categories"]


@pytest.mark.parametrize("level", LEVELS)
def test_every_value_can_be_read_off(level: str) -> None:
    """It stands on its mark or on a grid line, inside the axis, and no two things have one name."""
    kinds = set()
    for index in range(150):
        chart = draw_data(np.random.default_rng([4, index]), Request(level=level, language="en"))
        kinds.add(chart.kind)
        values = np.array(chart.values)
        assert chart.labelled or (values % chart.step == 0).all()
        assert chart.top % chart.step == 0 and chart.top // chart.step <= 10
        if chart.kind == "stacked":
            assert values.sum(axis=0).max() <= chart.top
        if chart.kind not in ("pie", "table", "heatmap"):
            assert values.max() <= chart.top and values.min() >= 0
        if chart.kind == "pie":
            assert values.sum() == 100 and values.min() >= 5
        if chart.kind == "line":
            assert all(len(set(column)) == len(column) for column in values.T), "no mark hides another"
        if chart.kind == "box":
            assert (np.diff(values, axis=0) > 0).all()
        assert len(set(chart.categories)) == len(chart.categories) and len(set(chart.series)) == len(chart.series)
    assert kinds == set(KINDS[level])


def test_every_kind_is_drawn_at_some_level() -> None:
    assert {kind for kinds in KINDS.values() for kind in kinds} == set(DRAW)


def drawn(kind: str, *, labelled: bool, horizontal: bool = False, language: str = "en") -> tuple[Any, np.ndarray, Any]:
    """A chart of that kind, its pixels, and where things are."""
    request = Request(level="simple", language=language)
    for index in range(3000):
        rng = np.random.default_rng([8, index])
        chart = draw_data(rng, request)
        if (chart.kind, chart.labelled, chart.horizontal) == (kind, labelled, horizontal):
            image, place = draw(chart, draw_style(rng, request))
            return chart, np.asarray(image).astype(int), place
    raise AssertionError(f"no {kind}")


def along(chart: Chart, place: dict[str, Any], value: float) -> float:
    zero, top = place["axis"]
    return zero + (top - zero) * value / chart.top


@pytest.mark.parametrize("labelled", [True, False])
def test_a_bar_ends_where_its_value_says(labelled: bool) -> None:
    chart, pixels, place = drawn("bar", labelled=labelled)
    coloured = (np.abs(pixels - place["colours"][0]) <= 2).all(-1)
    columns = np.flatnonzero(coloured.sum(axis=0) > 8)
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    assert len(groups) == len(chart.categories)
    for group, value in zip(groups, chart.values[0], strict=True):
        ys = np.flatnonzero(coloured[:, int(np.median(group))])
        assert abs(ys.min() - along(chart, place, value)) <= 1.5 and abs(ys.max() - along(chart, place, 0)) <= 2.5


def test_a_horizontal_bar_ends_where_its_value_says() -> None:
    chart, pixels, place = drawn("bar", labelled=False, horizontal=True)
    coloured = (np.abs(pixels - place["colours"][0]) <= 2).all(-1)
    lines = np.flatnonzero(coloured.sum(axis=1) > 8)
    groups = np.split(lines, np.flatnonzero(np.diff(lines) > 1) + 1)
    assert len(groups) == len(chart.categories)
    for group, value in zip(groups, chart.values[0], strict=True):
        xs = np.flatnonzero(coloured[int(np.median(group))])
        assert abs(xs.max() - along(chart, place, value)) <= 2


def test_a_point_lies_where_its_value_says() -> None:
    chart, pixels, place = drawn("scatter", labelled=False)
    coloured = (np.abs(pixels - place["colours"][0]) <= 2).all(-1)
    columns = np.flatnonzero(coloured.any(axis=0))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    assert len(groups) == len(chart.categories)
    for group, value in zip(groups, chart.values[0], strict=True):
        ys = np.flatnonzero(coloured[:, int(np.median(group))])
        assert abs(ys.mean() - along(chart, place, value)) <= 1.5


def test_charts_do_not_follow_the_users_settings() -> None:
    import matplotlib

    chart, pixels, _ = drawn("bar", labelled=True)
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        assert np.array_equal(drawn("bar", labelled=True)[1], pixels)
        assert matplotlib.rcParams["font.size"] == 30, "nor do they change them"


def test_chinese_is_drawn_with_its_font() -> None:
    """Tofu boxes would all look alike: two titles of the same length differ."""
    try:
        fonts.chinese()
    except ValueError:
        pytest.skip("no font with Chinese characters")
    chart, pixels, _ = drawn("bar", labelled=True, language="zh")
    request = Request(level="simple", language="zh")
    style = draw_style(np.random.default_rng(0), request)
    looks = {draw(Chart(**{**chart.facts(), "title": title}), style)[0].tobytes() for title in ("图书", "用电", "会员")}
    assert len(looks) == 3


def one_bar(values: list[int]) -> Chart:
    names = [f"c{place}" for place in range(len(values))]
    return Chart(
        kind="bar", title="t", categories=names, series=["t"], values=[values], labelled=True, step=10, top=100
    )


def test_what_has_two_answers_is_not_asked() -> None:
    request = Request(level="complex", language="en")
    for index in range(30):
        rng = np.random.default_rng(index)
        assert extreme(rng, one_bar([5, 5, 5]), request) is None
        assert mean(rng, one_bar([1, 0, 0, 0, 0, 0, 0, 0]), request) is None, "0.125 to two places"
        assert share(rng, one_bar([1, 1, 1, 1, 1, 1, 1, 1] * 2), request) is None, "6.25 to one place"
        found = count_above(rng, one_bar([10, 20, 30]), request)
        assert found is None or found.given["bound"] not in (10, 20, 30)


def test_no_sum_is_asked_where_none_means_anything() -> None:
    sums = {"total", "mean", "share"}
    assert not sums & {ask.__name__ for asks in NO_SUMS.values() for ask in asks}
    assert sums <= {ask.__name__ for asks in QUESTIONS.values() for ask in asks}
