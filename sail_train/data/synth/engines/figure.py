"""A geometric figure in its own coordinates, drawn to scale: what is labelled is what the drawing shows.

Coordinates have y upwards, as on paper; `turned` rotates a figure so that no side is always level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sail_train.data.synth.engines.fonts import latin, load
from sail_train.data.synth.engines.item import pick, whole

Point = tuple[float, float]
_FINER = 2
"""Drawn this much larger and reduced, for smooth lines."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    points: dict[str, Point]
    """Named points, whose names are written beside them."""
    lines: tuple[str, ...] = ()
    """Straight lines through named points, such as "AB"."""
    circles: tuple[tuple[str, float], ...] = ()
    """Named centre and radius."""
    arcs: tuple[tuple[str, str, str], ...] = ()
    """(centre, from, to): the arc counter-clockwise from one named point to another."""
    angles: tuple[tuple[str, str], ...] = ()
    """("ABC", "40°"): the angle at the middle letter, and what is written into it."""
    squares: tuple[str, ...] = ()
    """Right angles, "ABC", marked with a little square."""
    lengths: tuple[tuple[str, str], ...] = ()
    """("AB", "12"): what is written beside a line."""
    dashed: tuple[str, ...] = ()
    hidden: tuple[str, ...] = field(default=())
    """Points whose names are not written."""

    def facts(self) -> dict[str, Any]:
        places = {name: [round(x, 6), round(y, 6)] for name, (x, y) in self.points.items()}
        return {
            "points": places,
            "angles": [list(one) for one in self.angles],
            "squares": list(self.squares),
            "lengths": [list(one) for one in self.lengths],
            "circles": [list(one) for one in self.circles],
        }

    def turned(self, degrees: float) -> Figure:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return replace(self, points={n: (x * cos - y * sin, x * sin + y * cos) for n, (x, y) in self.points.items()})


def polar(centre: Point, radius: float, degrees: float) -> Point:
    return (
        centre[0] + radius * math.cos(math.radians(degrees)),
        centre[1] + radius * math.sin(math.radians(degrees)),
    )


def draw(figure: Figure, rng: np.random.Generator) -> Image.Image:
    """On light paper, 360 to 520 pixels along the longer side."""
    return _Drawing(figure, rng).image()


class _Drawing:
    def __init__(self, figure: Figure, rng: np.random.Generator) -> None:
        self._figure = figure
        xs, ys = zip(*_extent(figure), strict=True)
        side, margin = whole(rng, 280, 400) * _FINER, 46 * _FINER
        self._unit = side / max(max(xs) - min(xs), max(ys) - min(ys))
        self._left, self._top, self._margin = min(xs), max(ys), margin
        size = [round((max(v) - min(v)) * self._unit) + 2 * margin for v in (xs, ys)]
        paper = tuple(int(level) for level in rng.integers(244, 256, size=3))
        self._image = Image.new("RGB", (size[0] // 2 * 2, size[1] // 2 * 2), paper)
        self._pen = ImageDraw.Draw(self._image)
        self._ink = pick(rng, ((25, 25, 25), (20, 50, 120), (90, 30, 90)))
        self._font = load(latin(pick(rng, ("sans", "serif", "times"))), whole(rng, 16, 19) * _FINER)
        self._middle = (float(np.mean(xs)), float(np.mean(ys)))

    def image(self) -> Image.Image:
        figure = self._figure
        for centre, radius in figure.circles:
            self._ring(figure.points[centre], radius)
        for centre, start, end in figure.arcs:
            self._arc(centre, start, end)
        for line in figure.lines:
            self._line(line)
        for line in figure.dashed:
            self._dashes(line)
        for name in figure.squares:
            self._square(name)
        for name, text in figure.angles:
            self._angle(name, text)
        for line, text in figure.lengths:
            self._length(line, text)
        for name in figure.points:
            self._name(name)
        return self._image.reduce(_FINER)

    def _at(self, point: Point) -> Point:
        return (
            (point[0] - self._left) * self._unit + self._margin,
            (self._top - point[1]) * self._unit + self._margin,
        )

    def _ring(self, centre: Point, radius: float) -> None:
        (x, y), r = self._at(centre), radius * self._unit
        self._pen.ellipse((x - r, y - r, x + r, y + r), outline=self._ink, width=2 * _FINER)

    def _arc(self, centre: str, start: str, end: str) -> None:
        middle, points = self._figure.points[centre], self._figure.points
        (x, y), r = self._at(middle), math.dist(middle, points[start]) * self._unit
        first, last = (math.degrees(_direction(middle, points[name])) for name in (start, end))
        # Pillow counts clockwise, since its y is downwards
        self._pen.arc((x - r, y - r, x + r, y + r), -last, -first, fill=self._ink, width=2 * _FINER)

    def _line(self, names: str) -> None:
        ends = [self._at(self._figure.points[name]) for name in (names[0], names[-1])]
        self._pen.line([*ends[0], *ends[1]], fill=self._ink, width=2 * _FINER)

    def _dashes(self, names: str) -> None:
        start, end = (np.array(self._at(self._figure.points[name])) for name in (names[0], names[-1]))
        count = max(2, int(np.linalg.norm(end - start) / (12 * _FINER)))
        for i in range(count):
            a, b = (start + (end - start) * (i + part) / count for part in (0, 0.55))
            self._pen.line([*map(float, a), *map(float, b)], fill=self._ink, width=_FINER)

    def _square(self, names: str) -> None:
        a, vertex, b = (np.array(self._at(self._figure.points[name])) for name in names)
        side = 13 * _FINER
        one, other = (side * (end - vertex) / np.linalg.norm(end - vertex) for end in (a, b))
        corners = (vertex + one, vertex + one + other, vertex + other)
        self._pen.line([tuple(map(float, corner)) for corner in corners], fill=self._ink, width=_FINER)

    def _angle(self, names: str, text: str) -> None:
        a, vertex, b = (self._figure.points[name] for name in names)
        one, other = sorted((_direction(vertex, a), _direction(vertex, b)))
        if other - one > math.pi:
            one, other = other, one + 2 * math.pi
        (x, y), r = self._at(vertex), 26 * _FINER
        box = (x - r, y - r, x + r, y + r)
        self._pen.arc(box, -math.degrees(other), -math.degrees(one), fill=self._ink, width=_FINER)
        # a narrow angle has room for its text farther out only
        middle, reach = (one + other) / 2, (34 + 520 / max(math.degrees(other - one), 12)) * _FINER
        self._text((x + reach * math.cos(middle), y - reach * math.sin(middle)), text)

    def _length(self, names: str, text: str) -> None:
        a, b = (np.array(self._at(self._figure.points[name])) for name in (names[0], names[-1]))
        normal = np.array([a[1] - b[1], b[0] - a[0]]) / np.linalg.norm(b - a)
        away = (a + b) / 2 - np.array(self._at(self._middle))
        # away from the middle, but a height is written inside the figure
        if (float(normal @ away) < 0) != (names in self._figure.dashed):
            normal = -normal
        wide = self._font.getlength(text) / 2 * abs(float(normal[0])) + 12 * _FINER
        x, y = (a + b) / 2 + normal * wide
        self._text((float(x), float(y)), text)

    def _name(self, name: str) -> None:
        if name in self._figure.hidden:
            return
        point = self._figure.points[name]
        x, y = self._at(point)
        self._pen.ellipse((x - 3 * _FINER, y - 3 * _FINER, x + 3 * _FINER, y + 3 * _FINER), fill=self._ink)
        dx, dy = self._free_side(name)
        self._text((x + 17 * _FINER * dx, y + 17 * _FINER * dy), name)

    def _free_side(self, name: str) -> Point:
        """The direction from a point, on the image, in which no line leaves it."""
        here = self._figure.points[name]
        pairs = [line[i : i + 2] for line in (*self._figure.lines, *self._figure.dashed) for i in range(len(line) - 1)]
        ends = [pair.replace(name, "") for pair in pairs if name in pair]
        taken = [-_direction(here, self._figure.points[end]) for end in ends]
        if not taken:
            return (0.7, 0.7)
        options = [2 * math.pi * i / 24 for i in range(24)]
        away = math.atan2(-(here[1] - self._middle[1]), here[0] - self._middle[0])

        def room(option: float) -> float:
            near = min(abs(math.remainder(option - other, 2 * math.pi)) for other in taken)
            return min(near, 1.2) - 0.2 * abs(math.remainder(option - away, 2 * math.pi))

        best = max(options, key=room)
        return math.cos(best), math.sin(best)

    def _text(self, at: Point, text: str) -> None:
        self._pen.text(at, text, font=self._font, fill=self._ink, anchor="mm")


def _extent(figure: Figure) -> list[Point]:
    corners = list(figure.points.values())
    for centre, r in figure.circles:
        x, y = figure.points[centre]
        corners += [(x - r, y - r), (x + r, y + r)]
    for centre, start, _ in figure.arcs:
        (x, y), r = figure.points[centre], math.dist(figure.points[centre], figure.points[start])
        corners += [(x - r, y - r), (x + r, y + r)]
    return corners


def _direction(start: Point, end: Point) -> float:
    return math.atan2(end[1] - start[1], end[0] - start[0])
