"""Packing: measured samples -> rows of at most `seq_length` tokens and `max_patches` patches at once.

A row begins with the sample that has waited longest, so that none starves, and is filled with the longest that still
fits (best fit), from a buffer that is topped up after each choice. It is full when nothing in the full buffer fits.
State: where the buffer's samples are in their shards, longest waiting first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sail_train.data.config import DataConfig
from sail_train.data.measure import Measure
from sail_train.data.quarantine import Ledger
from sail_train.data.shards import CHANGED, Candidate
from sail_train.data.shuffle import Shuffle
from sail_train.types import BadSample, Encoded


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A sample of a row, and where it came from."""

    encoded: Encoded
    shard: str
    num_tokens: int
    num_patches: int
    place: list[Any]


class Pack(Iterator[tuple[Packed, ...]]):
    """Endless packed rows of one stream; samples that cannot be measured go to the ledger."""

    def __init__(self, candidates: Shuffle, measure: Measure, config: DataConfig, *, ledger: Ledger) -> None:
        self._candidates = candidates
        self._measure = measure
        self._config = config
        self._ledger = ledger
        self._waiting: list[Packed] = []

    def __next__(self) -> tuple[Packed, ...]:
        row: list[Packed] = []
        tokens, patches = self._config.seq_length, self._config.max_patches
        while True:
            while len(self._waiting) < self._config.pack_buffer:
                self._waiting.append(self._next_measured())
            place = best_fit(self._waiting, tokens, patches) if row else 0
            if place is None:
                return tuple(row)
            chosen = self._waiting.pop(place)
            tokens -= chosen.num_tokens
            patches -= chosen.num_patches
            row.append(chosen)

    def state(self) -> dict[str, Any]:
        return {"pack": [packed.place for packed in self._waiting], **self._candidates.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._candidates.load_state(state)
        self._waiting = [self._measured_again(place) for place in state["pack"]]

    def _next_measured(self) -> Packed:
        while True:
            candidate = next(self._candidates)
            raw = candidate.raw
            try:
                packed = self._pack(candidate)
            except BadSample as error:
                self._ledger.bad(raw.source, raw.shard, raw.key, error)
                continue
            self._ledger.good(raw.source)
            return packed

    def _measured_again(self, place: list[Any]) -> Packed:
        candidate = self._candidates.reread(place)
        try:
            return self._pack(candidate)
        except BadSample as error:
            raw = candidate.raw
            where = f"source {raw.source!r}, shard {raw.shard!r}, key {raw.key!r}"
            raise ValueError(f"{CHANGED} {where}: {error}") from error

    def _pack(self, candidate: Candidate) -> Packed:
        encoded = self._measure(candidate)
        return Packed(
            encoded=encoded,
            shard=candidate.raw.shard,
            num_tokens=encoded.num_tokens,
            num_patches=encoded.num_patches,
            place=candidate.place,
        )


def best_fit(waiting: list[Packed], tokens: int, patches: int) -> int | None:
    """Place of the longest sample within both limits, the longest waiting of equals; None if none fits."""
    best, longest = None, 0
    for place, packed in enumerate(waiting):
        if longest < packed.num_tokens <= tokens and packed.num_patches <= patches:
            best, longest = place, packed.num_tokens
    return best
