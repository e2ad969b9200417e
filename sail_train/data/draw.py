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
    return (_hash(key, 8) >> 11) * 2.0**-53


def permutation(size: int, *key: Key) -> np.ndarray:
    """An order of range(size) that `key` fixes: (size,) int64."""
    # raw Philox words are promised to stay the same between numpy versions, Generator.permutation is not
    words = np.random.Philox(key=_hash(key, 16)).random_raw(size)
    return np.argsort(words, kind="stable")
