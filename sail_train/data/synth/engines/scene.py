"""Coloured shapes on a plain ground: placed, drawn, and how much of each can be seen.

Things are drawn in their order, later ones over earlier ones. Boxes and what is visible are taken from the very pixels
that were drawn, without smoothing, so that both are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sail_train.data.synth.engines.item import whole
from sail_train.data.synth.engines.words import COLOURS
from sail_train.processor.boxes import SEED_SCALE, bbox_text, to_model

RADII = {"small": 0.034, "large": 0.068}
"""Radius by size, as a share of the image's shorter side: one twice the other, so that no size is doubtful."""
_TRIES = 60


@dataclass(frozen=True, kw_only=True)
class Thing:
    shape: str
    colour: str
    size: str
    x: int
    """Centre in pixels."""
    y: int
    radius: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    width: int
    height: int
    ground: tuple[int, int, int]
    things: tuple[Thing, ...]

    def facts(self) -> dict[str, Any]:
        """Size, things, and in thousandths of the image where each can be seen."""
        boxes = [self.box(seen) for seen in self.visible()]
        things = [{**asdict(thing), "box": list(box)} for thing, box in zip(self.things, boxes, strict=True)]
        return {"width": self.width, "height": self.height, "things": things}

    def image(self) -> Image.Image:
        image = Image.new("RGB", (self.width, self.height), self.ground)
        pen = ImageDraw.Draw(image)
        for thing in self.things:
            _draw(pen, thing, COLOURS[thing.colour][0])
        return image

    def masks(self) -> list[np.ndarray]:
        """(height, width) bool for each thing: its pixels, were it alone."""
        return [self._mask(thing) for thing in self.things]

    def visible(self) -> list[np.ndarray]:
        """(height, width) bool for each thing: its pixels that no later one covers."""
        seen: list[np.ndarray] = []
        covered = np.zeros((self.height, self.width), bool)
        for mask in reversed(self.masks()):
            seen.append(mask & ~covered)
            covered |= mask
        return seen[::-1]

    def least_visible(self) -> float:
        """The smallest share of a thing that can be seen."""
        return min(float(seen.sum() / mask.sum()) for seen, mask in zip(self.visible(), self.masks(), strict=True))

    def box(self, mask: np.ndarray) -> tuple[int, ...]:
        """0-999 around the pixels of a mask."""
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        return to_model((cols[0], rows[0], cols[-1] + 1, rows[-1] + 1), self.height, self.width, SEED_SCALE)

    def point(self, mask: np.ndarray) -> tuple[int, ...]:
        """0-999: the pixel of a mask that is nearest to the middle of all its pixels."""
        ys, xs = np.nonzero(mask)
        nearest = int(np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2))
        return to_model((xs[nearest] + 0.5, ys[nearest] + 0.5), self.height, self.width, SEED_SCALE)

    def _mask(self, thing: Thing) -> np.ndarray:
        image = Image.new("1", (self.width, self.height))
        _draw(ImageDraw.Draw(image), thing, 1)
        return np.asarray(image)

    def with_things(self, things: Sequence[Thing]) -> Scene:
        return replace(self, things=tuple(things))


def bbox(values: Sequence[int]) -> str:
    return bbox_text(tuple(values))


def build(
    rng: np.random.Generator, kinds: Sequence[tuple[str, str, str]], *, side: tuple[int, int], gap: float
) -> Scene:
    """A scene of (size, colour, shape) things, fewer where there is no room for all.

    `side`: least and most pixels of a side. `gap`: least distance of two centres as a multiple of the sum of their
    radii; from 1.1 on nothing touches.
    """
    width, height = whole(rng, *side), whole(rng, *side)
    ground = tuple(int(level) for level in rng.integers(228, 256, size=3))
    things: list[Thing] = []
    for size, colour, shape in kinds:
        radius = round(RADII[size] * min(side[0], width, height))
        for _ in range(_TRIES):
            x, y = whole(rng, radius + 3, width - radius - 4), whole(rng, radius + 3, height - radius - 4)
            if all(math.hypot(x - one.x, y - one.y) >= gap * (radius + one.radius) for one in things):
                things.append(Thing(shape=shape, colour=colour, size=size, x=x, y=y, radius=radius))
                break
    return Scene(width=width, height=height, ground=(ground[0], ground[1], ground[2]), things=tuple(things))


def _draw(pen: ImageDraw.ImageDraw, thing: Thing, fill: Any) -> None:
    if thing.shape == "circle":
        x, y, radius = thing.x, thing.y, thing.radius
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        pen.polygon(OUTLINES[thing.shape](thing), fill=fill)


def _polygon(corners: int, *, turn: float = 0.0, inner: float = 1.0) -> Callable[[Thing], list[tuple[int, int]]]:
    """Corners on a circle from the top on; with `inner` below 1 every other one lies that much nearer to the middle."""

    def outline(thing: Thing) -> list[tuple[int, int]]:
        points = []
        for number in range(corners):
            angle = 2 * math.pi * number / corners + turn
            reach = thing.radius * (inner if number % 2 else 1.0)
            points.append((round(thing.x + reach * math.sin(angle)), round(thing.y - reach * math.cos(angle))))
        return points

    return outline


OUTLINES = {
    "square": _polygon(4, turn=math.pi / 4),
    "triangle": _polygon(3),
    "star": _polygon(10, inner=0.42),
    "diamond": _polygon(4),
    "hexagon": _polygon(6, turn=math.pi / 6),
}
"""Corners of each shape but the circle."""
