"""A page: text put on paper word by word, every word with its box, and what happens to paper afterwards.

`Page` writes and remembers; `distort` rotates (the boxes with it), blurs, adds noise and the bands of a photographed
screen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sail_train.data.synth.engines.fonts import LATIN, face, load
from sail_train.data.synth.engines.item import Request, pick, whole
from sail_train.data.synth.engines.text import joined, wrap
from sail_train.processor.boxes import SEED_SCALE, to_model

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Word:
    text: str
    box: Box
    """Pixels of the ink."""
    block: int
    """What it belongs to: words of one paragraph, one cell, one value share a number."""
    line: int


class Page:
    """Paper to write on."""

    def __init__(self, rng: np.random.Generator, request: Request, width: int, height: int) -> None:
        self.paper = tuple(int(level) for level in rng.integers(238, 256, size=3))
        self.image = Image.new("RGB", (width, height), self.paper)
        self.words: list[Word] = []
        self.language = request.language
        self.margin = whole(rng, 28, 44)
        self.size = whole(rng, 16, 20)
        self._style = pick(rng, list(LATIN))
        self._pen = ImageDraw.Draw(self.image)
        self._blocks = self._lines = 0
        self._ink = pick(rng, ((20, 20, 20), (40, 40, 60), (30, 30, 90)))

    def font(self, *, bold: bool = False, scale: float = 1.0) -> Any:
        return load(face(self.language, self._style, bold=bold), round(self.size * scale))

    def write(
        self, text: str, at: tuple[float, float], width: float, *, bold: bool = False, scale: float = 1.0
    ) -> tuple[int, float]:
        """Writes a block of lines no wider than `width`; (its number, where the next may begin)."""
        font, (left, top) = self.font(bold=bold, scale=scale), at
        for line in wrap(text, font, width, self.language):
            for place, word in enumerate(line):
                before = joined([*line[:place], ""], self.language) if place else ""
                self._word(word, (left + font.getlength(before), top), font)
            self._lines += 1
            top += round(self.size * scale * 1.5)
        self._blocks += 1
        return self._blocks - 1, top

    def rule(self, x1: float, y1: float, x2: float, y2: float) -> None:
        self._pen.line((x1, y1, x2, y2), fill=self._ink, width=1)

    def _word(self, text: str, at: tuple[float, float], font: Any) -> None:
        self._pen.text(at, text, font=font, fill=self._ink)
        box = self._pen.textbbox(at, text, font=font)
        self.words.append(Word(text=text, box=box, block=self._blocks, line=self._lines))

    def cut(self, bottom: float) -> None:
        """Cuts off the empty paper below."""
        self.image = self.image.crop((0, 0, self.image.width, min(self.image.height, round(bottom) + self.margin)))
        self._pen = ImageDraw.Draw(self.image)

    def words_of(self, block: int) -> list[Word]:
        return [word for word in self.words if word.block == block]


def around(words: list[Word]) -> Box:
    return (
        min(word.box[0] for word in words),
        min(word.box[1] for word in words),
        max(word.box[2] for word in words),
        max(word.box[3] for word in words),
    )


def thousandths(box: Box, image: Image.Image) -> list[int]:
    return list(to_model(box, image.height, image.width, SEED_SCALE))


@dataclass(frozen=True, kw_only=True)
class Wear:
    """What may happen to a page; each is drawn up to its limit."""

    degrees: float = 0.0
    blur: float = 0.0
    """Radius in pixels."""
    noise: float = 0.0
    """Standard deviation in grey levels."""
    bands: float = 0.0
    """Depth of a screen's bands, a share of the brightness."""


WEAR = {
    "basic": Wear(),
    "simple": Wear(degrees=1.5, blur=0.5, noise=5),
    "complex": Wear(degrees=5.0, blur=0.9, noise=12, bands=0.12),
}


def distort(page: Page, rng: np.random.Generator, wear: Wear) -> tuple[Image.Image, list[Word]]:
    """The worn picture, and the words where they are now."""
    image, words = page.image, page.words
    if wear.degrees:
        image, words = _rotated(image, words, float(rng.uniform(-wear.degrees, wear.degrees)), page.paper)
    if wear.blur:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, wear.blur))))
    pixels = np.asarray(image).astype(np.float64)
    if wear.bands and rng.random() < 0.6:
        pixels *= _bands(rng, image, wear.bands)
    if wear.noise:
        pixels += rng.normal(0, rng.uniform(0, wear.noise), size=pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)), words


def _rotated(
    image: Image.Image, words: list[Word], degrees: float, paper: tuple[int, ...]
) -> tuple[Image.Image, list[Word]]:
    """Counter-clockwise on paper that grows; a box becomes the upright one around its turned corners."""
    turned = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle, new = (image.width / 2, image.height / 2), (turned.width / 2, turned.height / 2)

    def place(x: float, y: float) -> tuple[float, float]:
        dx, dy = x - middle[0], y - middle[1]
        return new[0] + dx * cos + dy * sin, new[1] - dx * sin + dy * cos

    moved = []
    for word in words:
        x1, y1, x2, y2 = word.box
        xs, ys = zip(*(place(x, y) for x in (x1, x2) for y in (y1, y2)), strict=True)
        moved.append(Word(text=word.text, box=(min(xs), min(ys), max(xs), max(ys)), block=word.block, line=word.line))
    return turned, moved


def _bands(rng: np.random.Generator, image: Image.Image, depth: float) -> np.ndarray:
    """(height, width, 3): two fine gratings, a little apart in pitch and angle, whose product beats like a moiré."""
    ys, xs = np.mgrid[0 : image.height, 0 : image.width]
    pitch, angle = rng.uniform(2.5, 5.0), rng.uniform(0, math.pi)
    grating = np.ones((image.height, image.width))
    for turn in (0.0, rng.uniform(0.03, 0.12)):
        along = xs * math.cos(angle + turn) + ys * math.sin(angle + turn)
        grating *= 0.5 + 0.5 * np.sin(2 * math.pi * along / (pitch * (1 + turn)))
    tint = rng.uniform(0.6, 1.0, size=3)
    return 1 - depth * grating[:, :, None] * tint
