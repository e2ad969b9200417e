"""Decoding: the images and videos of a row become patches; only here do pixels exist.

A sample whose pixels fail leaves its row, which is not refilled: the order of all other samples stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sail_train.types import BadSample, Encoded

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""`map`, or that of a pool of threads."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A sample that can be trained on."""

    encoded: Encoded
    patches: tuple[np.ndarray, ...]
    """(P, patch_dim) uint8 of each image or video."""


def decode(
    samples: Sequence[Encoded], processor: SailVLProcessor, *, run: Map = map
) -> tuple[list[Decoded], list[tuple[int, BadSample]]]:
    """The samples whose pixels could be read, in order, and place and reason of those that could not."""

    def attempt(sample: Encoded) -> Decoded | BadSample:
        try:
            return _decode(sample, processor)
        except BadSample as error:
            return error

    decoded, failed = [], []
    for place, result in enumerate(run(attempt, samples)):
        if isinstance(result, BadSample):
            failed.append((place, result))
        else:
            decoded.append(result)
    return decoded, failed


def _decode(sample: Encoded, processor: SailVLProcessor) -> Decoded:
    patches = tuple(processor.pixels(visual) for visual in sample.visuals)
    assert sum(map(len, patches)) == sample.num_patches, "what was measured is what is decoded"
    return Decoded(encoded=sample, patches=patches)
