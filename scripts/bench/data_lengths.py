"""Lengths without data: mixtures of samples as a vision-language model sees them, and a model that they cost.

A sample is its text tokens and the patches of its pictures; four patches make a token. The mixtures are assumptions,
written down here: `vlm` is the one of the packing table, the other two those of the balance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sail_train.cost import ModelShape
from sail_train.visual import ImageSpec

MERGE = 4
"""Patches in a token."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    text: int
    pictures: tuple[int, ...]
    """Patches of each."""

    @property
    def patches(self) -> int:
        return sum(self.pictures)

    @property
    def tokens(self) -> int:
        return self.text + self.patches // MERGE


def vlm(rng: np.random.Generator) -> Sample:
    """15% text, 35% images of 256 tokens, 30% native images of 200 to 1600, 15% documents of 800 to 5000 tokens, 5% of
    2000 to 12000 in several pictures."""
    kind = rng.random()
    if kind < 0.15:
        return Sample(text=_between(rng, 50, 800), pictures=())
    if kind < 0.5:
        return Sample(text=_between(rng, 20, 200), pictures=(256 * MERGE,))
    if kind < 0.8:
        return Sample(text=_between(rng, 20, 300), pictures=(MERGE * _between(rng, 200, 1600),))
    if kind < 0.95:
        tokens = _between(rng, 800, 5000)
        return Sample(text=tokens - (picture := min(4096, int(0.8 * tokens))), pictures=(MERGE * picture,))
    tokens = _between(rng, 2000, 12000)
    each = int(rng.integers(400, 1200))
    return Sample(text=tokens - (count := int(0.8 * tokens) // each) * each, pictures=(MERGE * each,) * count)


def captions(rng: np.random.Generator) -> Sample:
    """Images of 448 x 448 with a caption."""
    return Sample(text=_between(rng, 20, 200), pictures=(256 * MERGE,))


def tiles(rng: np.random.Generator) -> Sample:
    """20% text, the rest photographs, screenshots and pages of all sizes cut into 1 to 10 tiles and a thumbnail."""
    if rng.random() < 0.2:
        return Sample(text=_between(rng, 50, 2000), pictures=())
    side, aspect = float(rng.lognormal(np.log(800), 0.5)), float(rng.lognormal(0, 0.35))
    grids = TILED.grids(max(64, int(side / aspect)), max(64, int(side * aspect)))
    return Sample(text=_between(rng, 20, 300), pictures=tuple(rows * cols for rows, cols in grids))


TILED = ImageSpec(mode="tile")
MIXES: dict[str, Callable[[np.random.Generator], Sample]] = {"native": vlm, "tiles": tiles, "captions": captions}


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high))


def drawn(mix: str, count: int, *, seq_length: int, max_patches: int, seed: int = 0) -> tuple[list[Sample], int]:
    """(samples that a row holds, how many were drawn beside them that no row does)."""
    rng, found, refused = np.random.default_rng(seed), [], 0
    while len(found) < count:
        sample = MIXES[mix](rng)
        fits = sample.tokens <= seq_length and sample.patches <= max_patches
        found += [sample] if fits else []
        refused += not fits
    return found, refused


def shape_of(model: str) -> ModelShape:
    """The shapes of a model by its name in configs/model."""
    from sail_train.job.compose import Configs
    from sail_train.job.model import compose_model
    from sail_train.job.overrides import parse_tokens
    from sail_train.model.flops import model_shape

    config = compose_model(Configs(), parse_tokens([f"model={model}"]))
    return model_shape(config, vocab_size=config.language.vocab_size or 151_936)
