"""Boxes and points: pixels of the original image <-> a model's integers <-> text; and pixels of what the encoder sees.

Coordinates alternate x and y from the upper left corner of the *upright* image (`upright` turns those that were drawn
before its EXIF orientation was applied): two are a point, four a box x1 y1 x2 y2, whose right and lower edges are
behind its last pixel. A model's scale is the number that stands for the right or lower edge: 0 to 999 in Seed1.5-VL
(arXiv 2505.07062, section 3.1.3), 0 to 1000 in SAIL-VL2's RefCOCO (arXiv 2509.14033, section 5). Being relative to the
whole image, a model's numbers do not change with resizing or tiling; `pictures` is for what is drawn on a tile or read
from one. The verifier `box` of the rewards holds to the same order and drops the same empty boxes; it compares numbers
of one scale with each other, so either scale will do there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sail_train.types import BadSample
from sail_train.visual import ImageSpec

SEED_SCALE = 999
SAIL_SCALE = 1000
MAX_FOUND = 1000
"""Boxes or points read from one text; what follows is left."""

Box = tuple[float, float, float, float]
Point = tuple[float, float]

_NUMBER = r"(-?\d{1,6}(?:\.\d{1,6})?)"
_NEXT = r"(?:\s*,\s*|\s+)"
_BOX = re.compile(
    r"<ref>([^<]{0,500})</ref>|(</box>)"
    rf"|(?:<bbox>|[\[(])\s*{_NUMBER}{_NEXT}{_NUMBER}{_NEXT}{_NUMBER}{_NEXT}{_NUMBER}\s*(?:</bbox>|[\])])"
)
"""A label, the end of what it is for, or four numbers."""
_POINT = re.compile(rf"<point>\s*{_NUMBER}{_NEXT}{_NUMBER}\s*</point>")


def to_model(coordinates: Sequence[float], height: int, width: int, scale: int) -> tuple[int, ...]:
    """Pixels of an image of (height, width) -> integers 0..scale, at most half a unit off; what is outside moves in.

    BadSample "bad_box": not x, y in pairs, or not finite.
    """
    if len(coordinates) % 2 or not all(math.isfinite(value) for value in coordinates):
        raise BadSample("bad_box", f"{list(coordinates)[:8]} are no finite pairs of x and y")
    sides = (width, height)
    return tuple(
        round(min(max(value / sides[i % 2], 0.0), 1.0) * scale) for i, value in enumerate(coordinates)
    )  # fmt: skip


def to_pixels(values: Sequence[float], height: int, width: int, scale: int) -> tuple[float, ...]:
    """A model's numbers -> pixels of an image of (height, width); what lies beyond the scale lies beyond the image."""
    sides = (width, height)
    return tuple(value / scale * sides[i % 2] for i, value in enumerate(values))


def upright(coordinates: Sequence[float], height: int, width: int, orientation: int) -> tuple[float, ...]:
    """Pixels of an image as it is stored, (height, width), -> of the upright one; `orientation` is EXIF's 1 to 8.

    A box stays a box: its corners are put in order again.
    """
    points = [_turn(x, y, height, width, orientation) for x, y in _pairs(coordinates)]
    if len(points) != 2:
        return tuple(value for point in points for value in point)
    (x1, y1), (x2, y2) = points
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture that the vision encoder gets: which part of the original image it shows, and how large."""

    left: float
    """Pixels of the original image, as the other three edges."""
    top: float
    right: float
    bottom: float
    height: int
    """Pixels of the picture."""
    width: int

    def into(self, coordinates: Sequence[float]) -> tuple[float, ...]:
        """Pixels of the original image -> of the picture; below 0 or beyond its size where it does not show them."""
        across, down = self.width / (self.right - self.left), self.height / (self.bottom - self.top)
        return tuple(v for x, y in _pairs(coordinates) for v in ((x - self.left) * across, (y - self.top) * down))

    def back(self, coordinates: Sequence[float]) -> tuple[float, ...]:
        """Pixels of the picture -> of the original image."""
        across, down = (self.right - self.left) / self.width, (self.bottom - self.top) / self.height
        return tuple(v for x, y in _pairs(coordinates) for v in (x * across + self.left, y * down + self.top))

    def shows(self, box: Box) -> bool:
        """Whether some of the box's inside is in the picture."""
        x1, y1, x2, y2 = box
        return x1 < self.right and x2 > self.left and y1 < self.bottom and y2 > self.top

    def clip(self, box: Box) -> Box:
        """The part of a box that the picture shows, in the picture's pixels."""
        x1, y1, x2, y2 = self.into(box)
        return max(x1, 0.0), max(y1, 0.0), min(x2, self.width), min(y2, self.height)


def pictures(
    height: int, width: int, spec: ImageSpec, max_tiles: int | None = None, *, alone: bool = True
) -> tuple[Picture, ...]:
    """What the encoder gets of an upright image of (height, width), in the order of `ImageSpec.grids`."""
    if spec.mode == "native":
        rows, cols = spec.resize(height, width)
        return (Picture(left=0, top=0, right=width, bottom=height, height=rows, width=cols),)
    side = spec.tile_size
    return tuple(
        Picture(
            left=width * col / cols,
            top=height * row / rows,
            right=width * (col + 1) / cols,
            bottom=height * (row + 1) / rows,
            height=side,
            width=side,
        )
        for rows, cols in spec.tiles(height, width, max_tiles, alone=alone)
        for row in range(rows)
        for col in range(cols)
    )


def bbox_text(values: Sequence[int]) -> str:
    """Seed1.5-VL's box."""
    return f"<bbox>{_four(values)[0]} {values[1]} {values[2]} {values[3]}</bbox>"


def point_text(values: Sequence[int]) -> str:
    """Seed1.5-VL's point."""
    if len(values) != 2:
        raise ValueError(f"{list(values)} is not a point x, y")
    return f"<point>{values[0]} {values[1]}</point>"


def ref_text(label: str, boxes: Sequence[Sequence[int]]) -> str:
    """What a phrase means, as InternVL and SAIL-VL2 write it: one or several boxes."""
    inner = ",".join("[" + ",".join(str(value) for value in _four(box)) + "]" for box in boxes)
    return f"<ref>{label}</ref><box>[{inner}]</box>"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A box in a text."""

    box: Box
    """In the scale that was asked for."""
    label: str = ""
    """Of the `<ref>` that its `<box>` follows."""


def find_boxes(text: str, scale: int) -> list[Found]:
    """All boxes of a text, in order, whatever their form: `<bbox>`, `<box>[[..]]</box>`, `[..]` or `(..)`.

    Numbers none of which exceeds 1 are taken for shares of the image (RefCOCO's other form). Empty boxes are left
    out, and so is what cannot be read: untrusted text never raises.
    """
    found: list[Found] = []
    label = ""
    for match in _BOX.finditer(text):
        ref, end, *numbers = match.groups()
        if ref is not None or end is not None:
            label = (ref or "").strip()
            continue
        x1, y1, x2, y2 = _scaled(numbers, scale)
        if x1 < x2 and y1 < y2:
            found.append(Found(box=(x1, y1, x2, y2), label=label))
        if len(found) == MAX_FOUND:
            break
    return found


def find_points(text: str, scale: int) -> list[Point]:
    """All `<point>` of a text, in order, read as boxes are."""
    points = [_scaled(match.groups(), scale) for match, _ in zip(_POINT.finditer(text), range(MAX_FOUND), strict=False)]
    return [(x, y) for x, y in points]


def _scaled(numbers: Sequence[str], scale: int) -> tuple[float, ...]:
    values = tuple(float(number) for number in numbers)
    return tuple(value * scale for value in values) if max(values) <= 1 else values


def _four(values: Sequence[int]) -> Sequence[int]:
    if len(values) != 4:
        raise ValueError(f"{list(values)} is not a box x1, y1, x2, y2")
    return values


def _pairs(coordinates: Sequence[float]) -> list[Point]:
    return list(zip(coordinates[::2], coordinates[1::2], strict=True))


def _turn(x: float, y: float, height: int, width: int, orientation: int) -> Point:
    turned = {
        2: (width - x, y),
        3: (width - x, height - y),
        4: (x, height - y),
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }
    return turned.get(orientation, (x, y))
