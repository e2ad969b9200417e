"""Rendered pictures: bar charts and coloured shapes, laid out on the 28-pixel cells of one visual token."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from sail_train.data.synth.scans import CELL

COLOURS = {"red": (214, 48, 49), "green": (39, 174, 96), "blue": (41, 98, 255), "yellow": (241, 196, 15)}
SHAPES = ("circle", "square", "triangle")
CHART_MAX = 9
"""Bars are whole numbers from 1 to this; one unit is six pixels."""
_UNIT = 6


def bar_chart(heights: list[int], rng: np.random.Generator) -> Image.Image:
    """A bar of each height, side by side on a common base line; one cell wide, two cells high."""
    image = Image.new("RGB", (len(heights) * CELL, 2 * CELL), _background(rng))
    pen = ImageDraw.Draw(image)
    base = 2 * CELL - 1
    colours = list(COLOURS.values())
    for i, height in enumerate(heights):
        left = i * CELL + 5
        pen.rectangle((left, base - height * _UNIT, left + CELL - 11, base), fill=colours[rng.integers(len(colours))])
    pen.line((0, base, image.width, base), fill=(60, 60, 60))
    return image


def shape_grid(shapes: list[tuple[str, str]], cols: int, rng: np.random.Generator) -> Image.Image:
    """(colour, shape) pairs in raster order, one per cell, with jittered size and place."""
    rows = len(shapes) // cols
    image = Image.new("RGB", (cols * CELL, rows * CELL), _background(rng))
    pen = ImageDraw.Draw(image)
    for i, (colour, shape) in enumerate(shapes):
        size = int(rng.integers(14, 21))
        left = (i % cols) * CELL + int(rng.integers(2, CELL - size - 1))
        top = (i // cols) * CELL + int(rng.integers(2, CELL - size - 1))
        _draw_shape(pen, shape, COLOURS[colour], left, top, size)
    return image


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, fill: tuple[int, int, int], x: int, y: int, size: int) -> None:
    if shape == "circle":
        pen.ellipse((x, y, x + size, y + size), fill=fill)
    elif shape == "square":
        pen.rectangle((x, y, x + size, y + size), fill=fill)
    else:
        pen.polygon(((x, y + size), (x + size // 2, y), (x + size, y + size)), fill=fill)


def _background(rng: np.random.Generator) -> tuple[int, int, int]:
    level = rng.integers(225, 256, size=3)
    return int(level[0]), int(level[1]), int(level[2])
