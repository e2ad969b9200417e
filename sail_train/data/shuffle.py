"""Shuffling: the next sample is drawn from a bounded buffer of undecoded ones, and the newest takes its place.

When the mixture ends, the buffer is drawn empty. State: the draw counter and where the buffer's samples are in their
shards, in the buffer's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sail_train.data.candidate import Candidate
from sail_train.data.draw import Draws
from sail_train.data.mix import Mix
from sail_train.types import BadSample


class Shuffle(Iterator[Candidate]):
    """As long as the mixture, in another order; `size` 1 keeps the order."""

    def __init__(self, mix: Mix, size: int, *, seed: int, stream: int) -> None:
        self._mix = mix
        self._size = size
        self._draws = Draws(seed, "shuffle", stream)
        self._drawn = 0
        self._waiting: list[Candidate] = []

    def __next__(self) -> Candidate:
        while True:
            self._fill()
            if not self._waiting:
                raise StopIteration
            chosen = self._draw()
            if not self._mix.spent(chosen.raw.source):
                return chosen
            # it waited while its source used up its tokens
            self._mix.left_out(chosen.raw.source)

    def reread(self, place: list[Any]) -> Candidate | None:
        """A sample that left this buffer before the position was saved; see `WaitingSamples.reread`."""
        return self._mix.reread(place, counted=True)

    def lose_again(self, place: list[Any], key: str, error: BadSample) -> None:
        """See `WaitingSamples.lose`."""
        self._mix.lose_again(place, key, error)

    def check_end(self) -> None:
        """See `Mix.check_end`."""
        self._mix.check_end()

    def state(self) -> dict[str, Any]:
        waiting = [candidate.place for candidate in self._waiting]
        return {"shuffled": self._drawn, "shuffle": waiting, **self._mix.state()}

    def load_state(self, state: Mapping[str, Any], further: Iterable[list[Any]] = ()) -> None:
        """Goes on from `state`. Samples at `further` places are about to be read again too."""
        self._mix.load_state(state)
        self._mix.expect([*state["shuffle"], *further])
        self._drawn = state["shuffled"]
        waiting = [self._mix.reread(place) for place in state["shuffle"]]
        self._waiting = [candidate for candidate in waiting if candidate is not None]

    def _fill(self) -> None:
        while len(self._waiting) < self._size:
            try:
                self._waiting.append(next(self._mix))
            except StopIteration:
                return

    def _draw(self) -> Candidate:
        place = int(self._draws(self._drawn) * len(self._waiting))
        self._drawn += 1
        chosen = self._waiting[place]
        # the hole is filled at the next call, so that nothing is read ahead of need
        self._waiting[place] = self._waiting[-1]
        self._waiting.pop()
        return chosen
