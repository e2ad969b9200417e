"""Inline SVG: elements that escape what they are given, scales with round ticks, and the line chart.

Colours are classes (`s0` .. `s7`, `faint`), so that the page's style sheet decides them for light and dark.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Point = tuple[float, float]

SERIES_COLOURS = 8
"""Colours in the style sheet."""

MAX_POINTS = 240
"""Points drawn of a line; more are averaged in pairs, triples ..."""


def element(tag: str, *children: Markup | str, **attributes: str | int | float) -> Markup:
    """An SVG or HTML element; `class_="x"` sets class, `stroke_width=1` sets stroke-width. Text is escaped."""
    rendered = Markup("")
    for name, value in attributes.items():
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        rendered += Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), shown)
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{}{}>{}</{}>").format(Markup(tag), rendered, inner, Markup(tag))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._position(self.low), self._position(self.high)
        share = (self._position(value) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def _position(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


def ticks(low: float, high: float, *, wanted: int = 4) -> list[float]:
    """About `wanted` round numbers from `low` to `high`."""
    if high <= low:
        return [low]
    raw = (high - low) / max(1, wanted - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 2.5, 5, 10), key=lambda factor: abs(math.log(factor * power / raw)))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """The powers of ten in a range, at most five of them."""
    powers = list(range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1))
    every = max(1, math.ceil(len(powers) / 5))
    return [10.0**power for power in powers[::every]] or [low]


def short(value: float, *, percent: bool = False) -> str:
    """A number as an axis shows it: 0.003 -> 3e-3, 1500 -> 1.5k, shares as percent."""
    if percent:
        return f"{100 * value:.0f}%"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    for limit, divisor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / divisor:.3g}{letter}"
    return f"{value:.0f}" if size >= 1000 else f"{value:.3g}"


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points, each the mean of its neighbours."""
    size = max(1, math.ceil(len(points) / limit))
    groups = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def smooth(points: Sequence[Point], span: int) -> list[Point]:
    """Mean over the `span` values around each point, over fewer towards the ends, so that nothing lags behind."""
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    smoothed = []
    for at, (x, _) in enumerate(points):
        reach = min(span // 2, at, len(points) - 1 - at)
        smoothed.append((x, (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)))
    return smoothed


@dataclass(frozen=True, kw_only=True)
class Line:
    label: str
    points: Sequence[Point]
    colour: int = 0
    """Index of the series colour."""
    faint: bool = False
    """Drawn thin and left out of the reading: the raw values behind a smoothed line."""
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Size of a chart and its margins in pixels."""

    width: float = 200
    height: float = 128
    left: float = 40
    right: float = 8
    top: float = 10
    bottom: float = 20


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What a line chart's axes say."""

    percent: bool = False
    log: bool = False
    zero: bool = False
    """Whether the y axis starts at 0."""
    y_range: tuple[float, float] | None = None
    bare: bool = False
    """Only the lines: a picture the size of a word."""
    frame: Frame = field(default_factory=Frame)


def line_chart(lines: Sequence[Line], *, title: str, axes: Axes | None = None) -> Markup:
    """Lines over steps; empty markup if there is nothing to draw. `title` is what a screen reader says."""
    axes = axes or Axes()
    drawn = [Line(**(vars(line) | {"points": thin(line.points)})) for line in lines if line.points]
    if axes.log:
        drawn = [Line(**(vars(line) | {"points": [p for p in line.points if p[1] > 0]})) for line in drawn]
        drawn = [line for line in drawn if line.points]
    if not drawn:
        return Markup("")
    x, y = scales(drawn, axes)
    body = [] if axes.bare else [*_y_axis(y, axes), *_x_axis(x, axes.frame)]
    body += [_path(line, x, y) for line in drawn]
    frame = axes.frame
    return element(
        "svg",
        element("title", title),
        *body,
        class_="chart lines",
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="img",
        data_lines=_reading(drawn, x, y, axes),
    )


def scales(lines: Sequence[Line], axes: Axes) -> tuple[Scale, Scale]:
    frame = axes.frame
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = axes.y_range or _padded(min(ys), max(ys), axes)
    x = Scale(low=min(xs), high=max(xs), start=frame.left, end=frame.width - frame.right)
    return x, Scale(low=low, high=high, start=frame.height - frame.bottom, end=frame.top, log=axes.log)


def _padded(low: float, high: float, axes: Axes) -> tuple[float, float]:
    """The data's range with some air, and never of no height."""
    if axes.log:
        return low / 1.15, high * 1.15
    air = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (0.0 if axes.zero and low >= 0 else low - air), high + air


def _y_axis(y: Scale, axes: Axes) -> list[Markup]:
    frame = axes.frame
    marks = log_ticks(y.low, y.high) if y.log else ticks(y.low, y.high)
    parts = []
    for value in marks:
        at = y(value)
        parts.append(element("line", x1=frame.left, x2=frame.width - frame.right, y1=at, y2=at, class_="grid"))
        label = short(value, percent=axes.percent)
        parts.append(element("text", label, x=frame.left - 6, y=at + 3.5, class_="tick", text_anchor="end"))
    return parts


def _x_axis(x: Scale, frame: Frame) -> list[Markup]:
    base = frame.height - frame.bottom
    marks = [value for value in ticks(x.low, x.high) if value == int(value)]
    labels = []
    for value in marks:
        anchor = "end" if x(value) > frame.width - frame.right - 12 else "middle"
        labels.append(element("text", short(value), x=x(value), y=base + 14, class_="tick", text_anchor=anchor))
    return [element("line", x1=frame.left, x2=frame.width - frame.right, y1=base, y2=base, class_="axis"), *labels]


def _path(line: Line, x: Scale, y: Scale) -> Markup:
    style = f"line s{line.colour % SERIES_COLOURS}" + " faint" * line.faint + " dashed" * line.dashed
    if len(line.points) == 1:
        (px, py), *_ = line.points
        return element("circle", cx=x(px), cy=y(py), r=2.5, class_=style.replace("line", "dot"))
    return element("path", d=path_data([(x(px), y(py)) for px, py in line.points]), class_=style)


def path_data(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)


def _reading(lines: Sequence[Line], x: Scale, y: Scale, axes: Axes) -> str:
    """What the page's script shows under the pointer: pixel and label of every point that is read."""
    read = [
        {
            "label": line.label,
            "colour": line.colour % SERIES_COLOURS,
            "points": [
                [round(x(px), 1), round(y(py), 1), short(round(px)), short(py, percent=axes.percent)]
                for px, py in line.points
            ],
        }
        for line in lines
        if not line.faint
    ]
    return json.dumps(read, separators=(",", ":"))
