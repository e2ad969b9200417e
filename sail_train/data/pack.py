"""Packing: measured samples -> rows (`sail_train.data.fill` says which samples make one).

Samples that cannot be measured go to the ledger. A sample longer than a row is refused, or split into several where
`data.overlong` allows it. When the sources are exhausted the waiting samples make the last rows.
State: where the buffer's samples are in their shards, longest waiting first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sail_train.data.buffered import Buffered
from sail_train.data.candidate import Candidate
from sail_train.data.config import DataConfig
from sail_train.data.fill import Fill
from sail_train.data.measure import Measure
from sail_train.data.quarantine import Ledger
from sail_train.data.shuffle import Shuffle
from sail_train.types import BadSample, Encoded


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A sample of a row, or a piece of one, and where it came from."""

    encoded: Encoded
    shard: str
    num_tokens: int
    num_patches: int
    place: list[Any]
    """`Candidate.place`, or [that, number of the piece]."""


class Pack(Iterator[tuple[Packed, ...]]):
    """Packed rows of one stream, until its sources are exhausted."""

    def __init__(
        self, candidates: Shuffle, measure: Measure, config: DataConfig, *, ledger: Ledger, buffered: Buffered
    ) -> None:
        self._candidates = candidates
        self._measure = measure
        self._config = config
        self._ledger = ledger
        self._buffered = buffered
        self._fill: Fill[Packed] = Fill(self._next_measured, config)
        self._lost: list[list[Any]] = []
        """Places of waiting samples that could not be read again."""

    def __next__(self) -> tuple[Packed, ...]:
        row = self._fill.row()
        self._buffered.check()
        if not row:
            self._candidates.check_end()
            raise StopIteration
        return row

    def state(self) -> dict[str, Any]:
        waited = {} if self._config.max_wait is None else {"waited": list(self._fill.ages)}
        return {"pack": [packed.place for packed in self._fill.waiting], **waited, **self._candidates.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._candidates.load_state(state, [_whole(place)[0] for place in state["pack"]])
        ages = state.get("waited", [0] * len(state["pack"]))
        self._lost = []
        again = [(self._measured_again(place), age) for place, age in zip(state["pack"], ages, strict=True)]
        self._fill.waiting = [packed for packed, _ in again if packed is not None]
        self._fill.ages = [age for packed, age in again if packed is not None]

    def _next_measured(self) -> list[Packed]:
        while True:
            candidate = next(self._candidates)
            raw = candidate.raw
            try:
                packed = self._pieces(candidate)
            except BadSample as error:
                self._ledger.bad(raw.source, raw.shard, raw.key, error)
                continue
            self._ledger.good(raw.source, sum(piece.num_tokens for piece in packed))
            return packed

    def _measured_again(self, place: list[Any]) -> Packed | None:
        """A waiting sample or piece of one; None for one that is lost, which is counted once for all its pieces."""
        whole, piece = _whole(place)
        if whole in self._lost:
            return None
        candidate = self._candidates.reread(whole)
        if candidate is not None:
            try:
                pieces = self._pieces(candidate)
                if [one.place for one in pieces[piece : piece + 1]] == [place]:
                    return pieces[piece]
                raise BadSample("changed", f"piece {piece} of it is not what it was")
            except BadSample as error:
                self._candidates.lose_again(whole, candidate.raw.key, error)
        self._lost.append(whole)
        return None

    def _pieces(self, candidate: Candidate) -> list[Packed]:
        pieces = self._measure.pieces(candidate)
        for piece in pieces:
            self._buffered.add(piece)
        return [
            Packed(
                encoded=encoded,
                shard=candidate.raw.shard,
                num_tokens=encoded.num_tokens,
                num_patches=encoded.num_patches,
                place=candidate.place if len(pieces) == 1 else [candidate.place, number],
            )
            for number, encoded in enumerate(pieces)
        ]


def _whole(place: list[Any]) -> tuple[list[Any], int]:
    """`Candidate.place` of a `Packed.place`, and the number of the piece."""
    return (place[0], place[1]) if isinstance(place[0], list) else (place, 0)
