"""Grids of real handwritten digits: scikit-learn's 1,797 scans, split once into training and held-out ones.

A scan of 8 x 8 grey levels is enlarged to 24 x 24 pixels and set in a cell of 28 x 28, which is exactly one
visual token (2 x 2 patches of 14 pixels). Training cells are shifted and their contrast varied; held-out ones
are centred and plain.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

CELL = 28
"""Side of a cell in pixels."""
_SCAN = 24
_HELD_OUT_EVERY = 5
"""One scan in five is seen by evaluation only."""


@lru_cache(maxsize=2)
def scans(held_out: bool) -> tuple[np.ndarray, ...]:
    """Ten arrays (n, 24, 24) uint8, the scans of each digit, of one side of the split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    picked = [i for rank, i in enumerate(order) if (rank % _HELD_OUT_EVERY == 0) == held_out]
    grey = (digits.images * 255 / 16).astype(np.uint8)
    large = np.stack([_enlarge(grey[i]) for i in picked])
    targets = digits.target[picked]
    return tuple(large[targets == digit] for digit in range(10))


def _enlarge(scan: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(scan).resize((_SCAN, _SCAN), Image.Resampling.BILINEAR))


def digit_grid(digits: np.ndarray, rng: np.random.Generator, *, held_out: bool) -> Image.Image:
    """Draws an array of digits (rows, cols) as a picture of (rows * 28, cols * 28) pixels."""
    rows, cols = digits.shape
    canvas = np.zeros((rows * CELL, cols * CELL), np.uint8)
    margin = CELL - _SCAN
    for (row, col), digit in np.ndenumerate(digits):
        choices = scans(held_out)[digit]
        scan = choices[rng.integers(len(choices))]
        top, left = margin // 2, margin // 2
        if not held_out:
            top, left = rng.integers(0, margin + 1, size=2)
            scan = (scan * rng.uniform(0.7, 1.0)).astype(np.uint8)
        canvas[row * CELL + top :, col * CELL + left :][:_SCAN, :_SCAN] = scan
    return Image.fromarray(canvas).convert("RGB")
