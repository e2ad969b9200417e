"""Sources into one stream: each sample's source is drawn by weight, its number in the stream being the counter.

State: the counter, and the state of each source.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from sail_train.data.draw import uniform
from sail_train.data.shards import Candidate, SourceReader


class Mix(Iterator[Candidate]):
    """Endless weighted mixture of one stream's sources."""

    def __init__(
        self, readers: Mapping[str, SourceReader], weights: Mapping[str, float], *, seed: int, stream: int
    ) -> None:
        self.readers = readers
        # by name, so that the order of a YAML file's lines is not part of the run
        self._names = sorted(readers)
        self._bounds = list(accumulate(weights[name] for name in self._names))
        self._key = (seed, "mix", stream)
        self._drawn = 0

    def __next__(self) -> Candidate:
        place = uniform(*self._key, self._drawn) * self._bounds[-1]
        self._drawn += 1
        return next(self.readers[self._names[bisect_right(self._bounds, place)]])

    def reread(self, place: list[Any]) -> Candidate:
        """The sample that `Candidate.place` describes."""
        return self.readers[place[0]].reread(place)

    def state(self) -> dict[str, Any]:
        return {"drawn": self._drawn, "sources": {name: reader.state() for name, reader in self.readers.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._drawn = state["drawn"]
        for name, reader in self.readers.items():
            reader.load_state(state["sources"][name])
