"""Which signatures could be near, and which are: keys that near ones share, and the comparison itself.

Two 64-bit hashes within `distance` bits of each other agree in at least two of `distance` + 2 blocks, so one key per
pair of blocks misses none of them. Two texts of Jaccard similarity 0.8 share one of 16 bands of 4 MinHash values with
a probability of 0.9998.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from sail_train.config import choice
from sail_train.data.tools.signature_files import Signatures
from sail_train.data.tools.signatures import NUM_PERMUTATIONS, mix

BY = {
    "sample": "the same images and the same text: an image asked something else is no duplicate",
    "image": "the same images, whatever is said about them",
    "text": "the same text, whatever is shown",
}
BAND = 4
NUM_BANDS = NUM_PERMUTATIONS // BAND
MAX_COLOUR = 24
"""Largest difference of a mean colour, of 255: near hashes of differently coloured images are not near."""
MAX_ASPECT = 1.1
"""Largest ratio of two aspect ratios."""


@dataclass(frozen=True, kw_only=True)
class NearOptions:
    """What a duplicate is."""

    by: str = "sample"
    """A name in `BY`."""
    exact: bool = False
    """Only the same decoded pixels and the same words."""
    distance: int = 4
    """Bits of the perceptual hash that may differ."""
    similarity: float = 0.8
    """Least estimated Jaccard similarity of two texts."""

    def __post_init__(self) -> None:
        choice("--by", self.by, BY)
        if not 0 <= self.distance <= 14:
            raise ValueError(f"--distance {self.distance} must be from 0 to 14 bits; beyond, unlike images are near")
        if not 0 < self.similarity <= 1:
            raise ValueError(f"--similarity {self.similarity} must be above 0 and at most 1")

    @property
    def described(self) -> str:
        """As it is asked for; kept with the column that comes of it."""
        if self.exact:
            return f"--by {self.by} --exact"
        return f"--by {self.by} --distance {self.distance} --similarity {self.similarity:g}"

    @property
    def num_keys(self) -> int:
        return 1 if self.exact else len(block_pairs(self.distance)) + NUM_BANDS


def block_pairs(distance: int) -> list[tuple[np.uint64, np.uint64]]:
    """(mask, number) of each pair of blocks."""
    edges = np.linspace(0, 64, distance + 3).astype(int)
    blocks = [((1 << int(end)) - 1) ^ ((1 << int(start)) - 1) for start, end in itertools.pairwise(edges)]
    pairs = itertools.combinations(blocks, 2)
    return [(np.uint64(first | second), np.uint64(number)) for number, (first, second) in enumerate(pairs)]


def hash_keys(hashes: np.ndarray, distance: int, number: int) -> np.ndarray:
    """(n,) uint64: equal for hashes that agree in the number-th pair of blocks."""
    mask, salt = block_pairs(distance)[number]
    return mix((hashes & mask) ^ mix(np.array([salt])))


def band_keys(minhashes: np.ndarray, band: int) -> np.ndarray:
    """(n,) uint64 of (n, NUM_PERMUTATIONS): equal for those that agree in the band."""
    keys = np.full(len(minhashes), band, dtype=np.uint64)
    for place in range(band * BAND, (band + 1) * BAND):
        keys = mix(keys ^ minhashes[:, place].astype(np.uint64))
    return keys


def keys(signatures: Signatures, start: int, end: int, number: int, options: NearOptions) -> np.ndarray:
    """((participating samples, 2) uint64: sample and its number-th key) of samples start to end."""
    takes_part = participates(signatures, start, end, options)
    num_hashes = len(block_pairs(options.distance))
    if options.exact:
        samples = np.flatnonzero(takes_part) + start
        found = fingerprints(signatures, samples, options)
    elif number < num_hashes:
        takes_part &= (signatures["images"][start:end] > 0) & (options.by != "text")
        samples = np.flatnonzero(takes_part) + start
        found = hash_keys(signatures["perceptual"][signatures.first_image[samples]], options.distance, number)
    else:
        takes_part &= (signatures["images"][start:end] == 0) | (options.by == "text")
        samples = np.flatnonzero(takes_part) + start
        found = band_keys(signatures["minhash"][samples], number - num_hashes)
    return np.stack([samples.astype(np.uint64), found], axis=1)


def participates(signatures: Signatures, start: int, end: int, options: NearOptions) -> np.ndarray:
    """(end - start,) bool: samples that have what is compared."""
    good = np.array(signatures["good"][start:end])
    if options.by == "image":
        good &= signatures["images"][start:end] > 0
    if options.by == "text":
        good &= signatures["text"][start:end] > 0
    return good


def fingerprints(signatures: Signatures, samples: np.ndarray, options: NearOptions) -> np.ndarray:
    """(n,) uint64 of what must be the same for exact duplicates."""
    result = np.zeros(len(samples), dtype=np.uint64)
    if options.by != "image":
        result = mix(result ^ signatures["text"][samples])
    if options.by != "text":
        counts, first = signatures["images"][samples], signatures.first_image[samples]
        result = mix(result ^ signatures["videos"][samples] ^ mix(counts.astype(np.uint64)))
        for place in range(int(counts.max(initial=0))):
            has = counts > place
            result[has] = mix(result[has] ^ signatures["pixels"][first[has] + place])
    return result


def near(signatures: Signatures, one: np.ndarray, other: np.ndarray, options: NearOptions) -> np.ndarray:
    """(n,) bool: whether samples one[i] and other[i] are near in all that `by` names."""
    same = np.ones(len(one), dtype=bool)
    if options.by != "image":
        shared = (signatures["minhash"][one] == signatures["minhash"][other]).mean(axis=1)
        same &= shared >= options.similarity
    if options.by != "text":
        counts = signatures["images"][one]
        same &= counts == signatures["images"][other]
        same &= signatures["videos"][one] == signatures["videos"][other]
        for place in range(int(counts[same].max(initial=0))):
            has = np.flatnonzero(same & (counts > place))
            images = (signatures.first_image[side[has]] + place for side in (one, other))
            same[has] = near_images(signatures.fields, *images, distance=options.distance)
    return same


def near_images(
    fields: dict[str, np.ndarray],
    one: np.ndarray,
    other: np.ndarray,
    *,
    distance: int,
    others: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    """(n,) bool for images one[i] of `fields` and other[i] of `others` (or of the same)."""
    others = fields if others is None else others
    bits = np.bitwise_count(fields["perceptual"][one] ^ others["perceptual"][other])
    colours = np.abs(fields["colour"][one].astype(np.int16) - others["colour"][other].astype(np.int16)).max(axis=1)
    ratio = fields["aspect"][one] / others["aspect"][other]
    shape = (ratio <= MAX_ASPECT) & (ratio >= 1 / MAX_ASPECT)
    similar: np.ndarray = (bits <= distance) & (colours <= MAX_COLOUR) & shape
    return similar
