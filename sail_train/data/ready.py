"""A row that is ready to be trained on: a description, and one buffer with its ids, labels and patches.

This is what a worker hands to the trainer and what one rank sends to another: JSON beside plain bytes, no objects.
Samples whose pixels failed have left it already.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sail_train.data.decode import Decoded

BYTES_PER_TOKEN = 8
"""An id and a label, int32 each."""


@dataclass(frozen=True, kw_only=True)
class ReadyRow:
    """A decoded row. What the rank that read it keeps (`position`, `quarantined`) is empty elsewhere."""

    index: int
    """Number of the row in the run."""
    keys: tuple[str, ...]
    sources: tuple[str, ...]
    shards: tuple[str, ...]
    """Path of the shard that each sample is from."""
    lengths: tuple[int, ...]
    """Tokens of each sample."""
    grids: tuple[tuple[int, int], ...]
    """(patch rows, patch columns) of all pictures."""
    num_trained: int
    buffer: np.ndarray
    """(8 T + P x patch_dim,) uint8: ids, labels, patches."""
    position: dict[str, Any] = field(default_factory=dict)
    """JSON: where the row's stream stands after it."""
    quarantined: tuple[dict[str, Any], ...] = ()
    """Bad samples met since the stream's previous row, those of this row's whose pixels failed among them."""

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def picture_patches(self) -> list[int]:
        """Patches of each picture."""
        return [rows * cols for rows, cols in self.grids]

    @property
    def input_ids(self) -> np.ndarray:
        """(T,) int32."""
        return self.buffer[: 4 * self.num_tokens].view(np.int32)

    @property
    def labels(self) -> np.ndarray:
        """(T,) int32."""
        return self.buffer[4 * self.num_tokens : BYTES_PER_TOKEN * self.num_tokens].view(np.int32)

    @property
    def patches(self) -> np.ndarray:
        """(P x patch_dim,) uint8."""
        return self.buffer[BYTES_PER_TOKEN * self.num_tokens :]

    def describe(self) -> dict[str, Any]:
        """JSON: all but the buffer, and but what the rank that read it keeps."""
        return {name: getattr(self, name) for name in _DESCRIBED}


_DESCRIBED = ("index", "keys", "sources", "shards", "lengths", "grids", "num_trained")


def described(values: dict[str, Any], buffer: np.ndarray) -> ReadyRow:
    """The row of `describe`'s JSON and its buffer; `position` and `quarantined` may be among the values."""
    listed = {name: tuple(values[name]) for name in ("keys", "sources", "shards", "lengths")}
    return ReadyRow(
        index=values["index"],
        **listed,
        grids=tuple((rows, cols) for rows, cols in values["grids"]),
        num_trained=values["num_trained"],
        buffer=buffer,
        position=values.get("position", {}),
        quarantined=tuple(values.get("quarantined", ())),
    )


def ready(
    index: int,
    samples: Sequence[Decoded],
    shards: Sequence[str],
    *,
    position: dict[str, Any] | None = None,
    quarantined: Iterable[dict[str, Any]] = (),
) -> ReadyRow:
    """The row of decoded samples, their bytes in a buffer of its own."""
    encoded = [sample.encoded for sample in samples]
    parts = [sample.input_ids.astype(np.int32, copy=False) for sample in encoded]
    parts += [sample.labels.astype(np.int32, copy=False) for sample in encoded]
    parts += [visual for sample in samples for visual in sample.patches]
    size = sum(part.nbytes for part in parts)
    buffer, place = np.empty(size, np.uint8), 0
    for part in parts:
        buffer[place : place + part.nbytes] = part.reshape(-1).view(np.uint8)
        place += part.nbytes
    return ReadyRow(
        index=index,
        keys=tuple(sample.key for sample in encoded),
        sources=tuple(sample.source for sample in encoded),
        shards=tuple(shards),
        lengths=tuple(sample.num_tokens for sample in encoded),
        grids=tuple(grid for sample in encoded for grid in sample.grids),
        num_trained=sum(sample.num_trained for sample in encoded),
        buffer=buffer,
        position=position or {},
        quarantined=tuple(quarantined),
    )


def to_bytes(row: ReadyRow) -> np.ndarray:
    """(n,) uint8: the row as one message to another rank."""
    header = json.dumps(row.describe()).encode()
    size = np.array([len(header)], np.int64).view(np.uint8)
    return np.concatenate([size, np.frombuffer(header, np.uint8), row.buffer])


def from_bytes(message: np.ndarray) -> ReadyRow:
    """The row of `to_bytes`."""
    size = int(message[:8].view(np.int64)[0])
    # a copy, because a view of int32 must begin at a multiple of four
    return described(json.loads(message[8 : 8 + size].tobytes()), message[8 + size :].copy())
