"""Sources into one stream: each sample's source is drawn by weight, its number in the stream being the counter.

A source takes part from its first step to its last, until its epochs or its tokens are used up; what is drawn for the
rows of step k is drawn among those that take part then. When none does, what waits further on is used up, and then
the stream ends; `check_end` says whether that comes too early.
State: the counter, and the state of each source.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sail_train.data.candidate import Candidate
from sail_train.data.config import DataConfig
from sail_train.data.draw import Draws
from sail_train.data.quarantine import Ledger
from sail_train.data.shards import SourceReader
from sail_train.types import BadSample


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What was asked for: the same for all streams."""

    weights: Mapping[str, float]
    """By source, all above 0; with `data.temperature` already in them."""
    steps: Mapping[str, tuple[int, int | None]]
    """[first, last) step of each source."""
    tokens: Mapping[str, int]
    """Budgets of the whole run, of the sources that have one."""
    batch_rows: int
    num_streams: int

    @staticmethod
    def of(config: DataConfig, weights: Mapping[str, float]) -> Mixture:
        """ValueError if at some step no source takes part, while a later one would."""
        sources = {name: config.sources[name] for name in weights}
        mixture = Mixture(
            weights=weights,
            steps={name: (source.start_step, source.stop_step) for name, source in sources.items()},
            tokens={name: source.max_tokens for name, source in sources.items() if source.max_tokens is not None},
            batch_rows=config.batch_rows,
            num_streams=config.num_streams,
        )
        for step in sorted({0, *(last for _, last in mixture.steps.values() if last is not None)}):
            if not mixture.shares(step) and (later := mixture.first_after(step)):
                raise ValueError(
                    f"data.sources: none takes part at step {step}, and {later!r} starts at {mixture.steps[later][0]}; "
                    "let it start earlier (start_step), or another stop later (stop_step)"
                )
        return mixture

    def shares(self, step: int) -> dict[str, float]:
        """The share of the samples that is asked of each source that takes part at a step; they add up to 1."""
        weights = {name: self.weights[name] for name in self.weights if self.takes_part(name, step)}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def takes_part(self, name: str, step: int) -> bool:
        first, last = self.steps[name]
        return first <= step and (last is None or step < last)

    def first_after(self, step: int) -> str | None:
        """The source that starts next."""
        later = {name: first for name, (first, _) in self.steps.items() if first > step}
        return min(later, key=lambda name: (later[name], name)) if later else None

    def budget(self, name: str, stream: int) -> int | None:
        """A stream's part of a source's tokens; those of all streams add up to them."""
        if name not in self.tokens:
            return None
        return self.tokens[name] // self.num_streams + (stream < self.tokens[name] % self.num_streams)


class Mix(Iterator[Candidate]):
    """Weighted mixture of one stream's sources."""

    def __init__(
        self, readers: Mapping[str, SourceReader], mixture: Mixture, *, seed: int, stream: int, ledger: Ledger
    ) -> None:
        self.readers = readers
        # by name, so that the order of a YAML file's lines is not part of the run
        self._names = sorted(readers)
        self._mixture = mixture
        self._ledger = ledger
        self._budgets = {name: mixture.budget(name, stream) for name in mixture.tokens}
        self._stream = stream
        self._draws = Draws(seed, "mix", stream)
        self._drawn = 0
        self._chosen_for = -1
        """The step that these are chosen for; -1: they are to be chosen anew."""
        self._active: list[SourceReader] = []
        self._bounds: list[float] = []

    def __next__(self) -> Candidate:
        while True:
            # tokens are counted while the step goes on
            if self._budgets or self._chosen_for != self._step:
                self._choose()
            place = self._draws(self._drawn) * self._bounds[-1]
            self._drawn += 1
            reader = self._active[bisect_right(self._bounds, place)]
            try:
                return next(reader)
            except StopIteration:
                assert reader.exhausted
                self._chosen_for = -1

    def spent(self, name: str) -> bool:
        """Whether a source's tokens are used up."""
        budget = self._budgets.get(name)
        return budget is not None and self._ledger.tokens.get(name, 0) >= budget

    def left_out(self, name: str) -> None:
        """Counts a sample that waited when its source's tokens were used up."""
        self._ledger.left_out(name, 1)

    def expect(self, places: Iterable[list[Any]]) -> None:
        """See `WaitingSamples.expect`."""
        by_source: dict[str, list[list[Any]]] = {}
        for place in places:
            by_source.setdefault(place[0], []).append(place)
        for name, of_source in by_source.items():
            self.readers[name].waiting.expect(of_source)

    def reread(self, place: list[Any], *, counted: bool = False) -> Candidate | None:
        """See `WaitingSamples.reread`."""
        return self.readers[place[0]].waiting.reread(place, counted=counted)

    def lose_again(self, place: list[Any], key: str, error: BadSample) -> None:
        """See `WaitingSamples.lose`; of a sample that was counted."""
        self.readers[place[0]].waiting.lose(place, key, error, counted=True)

    def check_end(self) -> None:
        """For who has no sample left: ValueError if this is no end, because a source starts at a later step."""
        step, left = self._step, self._left()
        later = sorted(name for name in left if self._mixture.steps[name][0] > step)
        if later:
            raise ValueError(
                f"data.sources: stream {self._stream} has no sample left at step {step}: all sources that take part "
                f"are exhausted, and {later[0]!r} starts at {self._mixture.steps[later[0]][0]}; let it start earlier "
                "(start_step), or give another more epochs"
            )

    def state(self) -> dict[str, Any]:
        return {"drawn": self._drawn, "sources": {name: reader.state() for name, reader in self.readers.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """A source that is new to the mixture (`data.allow_mix_change`) begins at its beginning."""
        self._drawn, self._chosen_for = state["drawn"], -1
        for name, reader in self.readers.items():
            if name in state["sources"]:
                reader.load_state(state["sources"][name])

    @property
    def _step(self) -> int:
        """That of the row which is being filled."""
        return self._ledger.row // self._mixture.batch_rows

    def _left(self) -> list[str]:
        """Sources that are not used up."""
        return [name for name in self._names if not self.readers[name].exhausted and not self.spent(name)]

    def _choose(self) -> None:
        """Who takes part in the next draw; StopIteration if nobody does, until a later step or for good."""
        step, self._chosen_for = self._step, -1
        active = [name for name in self._left() if self._mixture.takes_part(name, step)]
        if not active:
            raise StopIteration
        self._chosen_for = step
        self._active = [self.readers[name] for name in active]
        self._bounds = list(accumulate(self._mixture.weights[name] for name in active))
