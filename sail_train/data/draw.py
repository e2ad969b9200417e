"""Random numbers as a pure function of a key: no generator whose state would have to be saved.

The n-th draw of a purpose is `uniform(seed, purpose, ..., n)`: a saved position needs the counter only, and a draw
does not depend on what else was drawn, on the rank, or on numpy's version.
"""

from __future__ import annotations

import hashlib

import numpy as np

Key = int | str


def _hash(key: tuple[Key, ...], size: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=size).digest(), "little")


def uniform(*key: Key) -> float:
    """A number in [0, 1) that `key` fixes."""
    return _fraction(_hash(key, 8))


class Draws:
    """`uniform(*key, n)` of one key for many n: what is hashed of the key is hashed once."""

    def __init__(self, *key: Key) -> None:
        assert len(key) > 1, key
        self._begun = hashlib.blake2b(f"{repr(key)[:-1]}, ".encode(), digest_size=8)

    def __call__(self, number: int) -> float:
        whole = self._begun.copy()
        whole.update(b"%d)" % number)
        return _fraction(int.from_bytes(whole.digest(), "little"))


def _fraction(word: int) -> float:
    """64 bits as a number in [0, 1)."""
    return (word >> 11) * 2.0**-53


def permutation(size: int, *key: Key) -> np.ndarray:
    """An order of range(size) that `key` fixes: (size,) int64."""
    # raw Philox words are promised to stay the same between numpy versions, Generator.permutation is not
    words = np.random.Philox(key=_hash(key, 16)).random_raw(size)
    return np.argsort(words, kind="stable")
