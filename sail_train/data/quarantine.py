"""Bad samples: each is counted by source, written down, and too many of them stop the run.

A `Ledger` is one logical stream's: its counts are part of the stream's position, and its records ride on the next
row. The `Budget` is shared by the streams of one rank and looks at their sum.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sail_train.data.config import SourceConfig
from sail_train.types import BadSample, RunStopped

SHOWN = 5
"""Last reasons in the message of a run that stops."""
SHARE_AFTER = 100
"""Samples read from a source before a share of bad ones says anything."""


class TooManyBadSamples(RunStopped):
    """A source is over its budget, or nothing but bad samples came."""


@contextmanager
def carried(records: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """What stops the run in here takes along bad samples of before, which would be written down with a later step.

    `records` is looked at when that happens: a list may grow meanwhile.
    """
    try:
        yield
    except RunStopped as error:
        error.records = (*records, *error.records)
        raise


class Budget:
    """What is put up with, over all streams of this rank."""

    def __init__(self, sources: Mapping[str, SourceConfig], *, max_in_a_row: int) -> None:
        self.max_bad = {name: source.max_bad for name, source in sources.items()}
        self.counts_tokens = {name for name, source in sources.items() if source.max_tokens is not None}
        """Sources whose tokens are part of the state."""
        self.max_in_a_row = max_in_a_row
        self.ledgers: list[Ledger] = []
        self.last: deque[str] = deque(maxlen=SHOWN)

    def ledger(self) -> Ledger:
        """A new stream's ledger."""
        self.ledgers.append(Ledger(self))
        return self.ledgers[-1]

    def check(self, source: str, in_a_row: int) -> None:
        """Raises TooManyBadSamples when `source` is over its budget or too many came in a row."""
        if in_a_row > self.max_in_a_row:
            self._stop(
                f"{in_a_row} bad samples in a row (max_bad_in_a_row={self.max_in_a_row})",
                "raise data.max_bad_in_a_row",
            )
        read, bad = (sum(ledger.counts[source][i] for ledger in self.ledgers) for i in (0, 1))
        limit = self.max_bad[source]
        over = bad > limit if limit >= 1 or limit == 0 else read >= SHARE_AFTER and bad > limit * read
        if over:
            self._stop(
                f"source {source!r}: {bad} of {read} samples are bad, more than max_bad={limit:g} allows",
                f"raise the max_bad of {source!r} (what on_bad_shard=skip leaves out of a shard counts, too)",
            )

    def _stop(self, what: str, remedy: str) -> None:
        pending = [record for ledger in self.ledgers for record in ledger.take()]
        raise TooManyBadSamples(
            f"{what}; the last ones: {' | '.join(self.last)}. Mend the shards, or {remedy} and start again", pending
        )


class Ledger:
    """Counts and records of one stream."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._records: list[dict[str, Any]] = []
        self.in_a_row = 0
        self.counts: dict[str, list[int]] = {name: [0, 0] for name in budget.max_bad}
        """Samples [read, bad] by source."""
        self.apart: dict[str, list[int]] = {}
        """Samples [left out by filter, weight or a used-up budget, shown again, lost with their shard] by source: what
        its shards list = read - shown again + left out. Those that are lost count as read and bad, too."""
        self.tokens: dict[str, int] = {}
        """Of good samples, by source that has a budget of them."""
        self.row = 0
        """Number in the run of the row that is being filled; not part of the state."""

    def good(self, source: str, tokens: int = 0) -> None:
        """A sample went on to the next step of the stream for good."""
        self.counts[source][0] += 1
        self.in_a_row = 0
        if source in self._budget.counts_tokens:
            self.tokens[source] = self.tokens.get(source, 0) + tokens

    def left_out(self, source: str, samples: int, again: int = 0) -> None:
        """Counts samples that are not to be read, and how many are to be read `again`."""
        self._apart(source, 0, samples)
        self._apart(source, 1, again)

    def lost(self, source: str, shard: str, error: BadSample, samples: int | None) -> None:
        """Writes down a shard that could not be read, with the number of its samples; each counts as read and bad, and
        where that number is not known (None), one. Raises TooManyBadSamples when that is more than the budget."""
        count = 1 if samples is None else samples
        self._apart(source, 2, count)
        self.counts[source][0] += count
        self.counts[source][1] += count
        self.in_a_row += 1
        self._write({**_record(source, shard, "", error), "samples": samples}, error)

    def bad(self, source: str, shard: str, key: str, error: BadSample) -> None:
        """Writes a refused sample down; raises TooManyBadSamples when that is one too many."""
        self.counts[source][0] += 1
        self.in_a_row += 1
        self._record(source, shard, key, error)

    def spoilt(self, source: str, shard: str, key: str, error: BadSample) -> None:
        """Writes a sample down that was counted as good before its pixels failed."""
        self._record(source, shard, key, error)

    def take(self) -> tuple[dict[str, Any], ...]:
        """The records since the last call."""
        records, self._records = tuple(self._records), []
        return records

    def state(self) -> dict[str, Any]:
        state = {"counts": {name: list(pair) for name, pair in self.counts.items()}, "in_a_row": self.in_a_row}
        rare = {"apart": {name: list(three) for name, three in self.apart.items()}, "tokens": dict(self.tokens)}
        return {**state, **{name: value for name, value in rare.items() if value}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._records = []
        self.counts = {name: list(state["counts"].get(name, (0, 0))) for name in self.counts}
        self.in_a_row = state["in_a_row"]
        self.apart = {name: list(three) for name, three in state.get("apart", {}).items()}
        self.tokens = dict(state.get("tokens", {}))

    def _apart(self, source: str, place: int, samples: int) -> None:
        if samples:
            self.apart.setdefault(source, [0, 0, 0])[place] += samples

    def _record(self, source: str, shard: str, key: str, error: BadSample) -> None:
        self.counts[source][1] += 1
        self._write(_record(source, shard, key, error), error)

    def _write(self, record: dict[str, Any], error: BadSample) -> None:
        self._records.append(record)
        self._budget.last.append(f"{record['shard']} {record['key']!r}: {error}")
        self._budget.check(record["source"], self.in_a_row)


def _record(source: str, shard: str, key: str, error: BadSample) -> dict[str, Any]:
    return {"source": source, "shard": shard, "key": key, "reason": error.reason, "detail": error.detail}
