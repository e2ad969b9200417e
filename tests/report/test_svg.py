from __future__ import annotations

import json
import re

import pytest
from markupsafe import Markup

from sail_train.report.svg import Axes, Line, Scale, element, line_chart, short, smooth, thin, ticks


def test_elements_escape_text_and_attributes() -> None:
    made = element("text", "<b>&", class_='"x', data_lines="{'a': \"<\"}")
    assert made == '<text class="&#34;x" data-lines="{&#39;a&#39;: &#34;&lt;&#34;}">&lt;b&gt;&amp;</text>'
    assert element("g", element("line"), "<") == "<g><line></line>&lt;</g>"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1.0]),
        (1, 390, [100, 200, 300]),
        (0, 100, [0, 25, 50, 75, 100]),
        (0.0121, 0.0179, [0.014, 0.016]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (1e-3, "1e-3"), (2.5e-4, "2.5e-4"), (0.05, "0.05"), (1500, "1500"), (26000, "26k"), (1.13e6, "1.13M")],
)
def test_numbers_on_axes_are_short(value: float, expected: str) -> None:
    assert short(value) == expected


def test_thinning_keeps_the_ends_and_the_level() -> None:
    points = [(float(step), step % 2.0) for step in range(1000)]
    thinned = thin(points, limit=100)
    assert len(thinned) == 100
    assert {round(y, 6) for _, y in thinned} == {0.5}
    assert thin(points[:50], limit=100) == points[:50]


def test_smoothing_neither_lags_nor_moves_the_ends() -> None:
    line = [(float(step), 3.0 * step) for step in range(50)]
    assert [y for _, y in smooth(line, 10)] == pytest.approx([y for _, y in line])
    steps = [(0.0, 0.0), (1.0, 6.0), (2.0, 0.0)]
    assert smooth(steps, 3) == [(0.0, 0.0), (1.0, 2.0), (2.0, 0.0)]
    assert smooth(steps, 1) == steps


def test_scales_map_ends_to_ends_and_survive_a_flat_line() -> None:
    scale = Scale(low=0, high=10, start=100, end=0)
    assert (scale(0), scale(10), scale(5)) == (100, 0, 50)
    assert Scale(low=3, high=3, start=0, end=10)(3) == 5
    assert Scale(low=1, high=100, start=0, end=10, log=True)(10) == pytest.approx(5)


def test_a_chart_of_nothing_is_nothing() -> None:
    assert line_chart([], title="t") == Markup("")
    assert line_chart([Line(label="a", points=[])], title="t") == Markup("")
    assert line_chart([Line(label="a", points=[(1, -1.0)])], title="t", axes=Axes(log=True)) == Markup("")


def test_a_chart_can_be_read_under_the_pointer() -> None:
    lines = [Line(label="<loss>", points=[(1, 2.0), (2, 1.0)]), Line(label="raw", points=[(1, 2)], faint=True)]
    chart = line_chart(lines, title="Loss")
    data = re.search(r'data-lines="([^"]*)"', chart)
    assert data is not None
    (line,) = json.loads(Markup(data[1]).unescape())
    assert line["label"] == "<loss>"
    assert [point[2:] for point in line["points"]] == [["1", "2"], ["2", "1"]]


def test_one_point_is_a_dot() -> None:
    chart = line_chart([Line(label="a", points=[(5, 0.5)])], title="t")
    assert "<circle" in chart and "<path" not in chart
