"""What a sample is compared by: hashes of its decoded pixels, of its videos' bytes and of its text.

Per image a digest of the upright RGB pixels, a 64-bit perceptual hash, its mean colour and its aspect ratio; per text
a digest of its normalised words and a MinHash of its 5-word shingles. All in numpy, the same on every machine.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from sail_train.processor.images import open_image

HASH_SIDE = 8
"""The perceptual hash keeps 8 x 8 frequencies ..."""
SCALED_SIDE = 32
"""... of the image in grey at 32 x 32."""
COLOUR_SIDE = 16
SHINGLE = 5
"""Words of a shingle; a Chinese character counts as a word."""
NUM_PERMUTATIONS = 64
"""Values of a MinHash: a Jaccard similarity of 0.8 is estimated to about 0.05."""

_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
# fixed odd multipliers: Philox words stay the same between numpy versions
_MULTIPLY, _ADD = np.random.Philox(key=20250914).random_raw(2 * NUM_PERMUTATIONS).reshape(2, -1) | np.uint64(1)
NO_TEXT = np.full(NUM_PERMUTATIONS, 2**32 - 1, dtype=np.uint32)


@dataclass(frozen=True, kw_only=True)
class ImageSignature:
    pixels: int
    """64-bit digest of size and pixels."""
    perceptual: int
    colour: tuple[int, int, int]
    """Mean red, green and blue."""
    aspect: float
    """Width over height."""


def sign_image(data: bytes) -> ImageSignature:
    """BadSample if the image cannot be decoded."""
    image = open_image(data)
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=8)
    digest.update(image.tobytes())
    red, green, blue = np.asarray(image.resize((1, 1), Image.Resampling.BOX)).reshape(3).tolist()
    return ImageSignature(
        pixels=int.from_bytes(digest.digest(), "little"),
        perceptual=perceptual_hash(image),
        colour=(red, green, blue),
        aspect=image.width / image.height,
    )


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """(HASH_SIDE + 1, SCALED_SIDE): the lowest rows of the discrete cosine transform."""
    frequency, place = np.arange(HASH_SIDE + 1)[:, None], np.arange(SCALED_SIDE)[None, :]
    rows: np.ndarray = np.cos(np.pi * (2 * place + 1) * frequency / (2 * SCALED_SIDE))
    return rows


def perceptual_hash(image: Image.Image) -> int:
    """pHash: which of the 64 lowest frequencies (without the mean) are above their median.

    It survives scaling, compression and small changes of colour, and not cropping or mirroring.
    """
    grey = image.convert("L").resize((SCALED_SIDE, SCALED_SIDE), Image.Resampling.BOX)
    cosines = _cosines()
    frequencies = cosines @ (np.asarray(grey, dtype=np.float64) - 128.0) @ cosines.T
    lowest = frequencies[:HASH_SIDE, 1:].ravel()  # the first column holds the mean, which says nothing of the shape
    lowest = np.where(np.abs(lowest) < 1e-6, 0.0, lowest)  # a flat image: rounding must not decide
    return int.from_bytes(np.packbits(lowest > np.median(lowest)).tobytes(), "big")


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; each character of Chinese, Japanese and Korean is one."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def ngram_hashes(text_words: Sequence[str], size: int) -> np.ndarray:
    """(number of n-grams,) uint64; of a shorter text the one hash of all its words; of no word none."""
    hashes = np.array([_word_hash(word) for word in text_words], dtype=np.uint64)
    if not len(hashes):
        return hashes
    size = min(size, len(hashes))
    mixed = np.full(len(hashes) - size + 1, size, dtype=np.uint64)
    for place in range(size):
        mixed = mix(mixed ^ hashes[place : place + len(mixed)])
    return mixed


def mix(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64 that looks like noise (the finish of splitmix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def text_digest(text: str) -> int:
    """Of the words alone: case, spaces and punctuation do not count. 0 for a text without a word."""
    found = words(text)
    return _word_hash("\0".join(found)) if found else 0


def minhash(text: str) -> np.ndarray:
    """(NUM_PERMUTATIONS,) uint32; equal values in the share of places that two texts share of their shingles."""
    shingles = np.unique(ngram_hashes(words(text), SHINGLE))
    if not len(shingles):
        return NO_TEXT
    lowest: np.ndarray = ((shingles[:, None] * _MULTIPLY + _ADD) >> np.uint64(32)).min(axis=0).astype(np.uint32)
    return lowest
