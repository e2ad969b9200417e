"""What a run is about to read, for its log: a table of the sources at the start, and how often each will be read.

A weight says little by itself: a source that is added with the default of 1 beside weights that add up to 1 is half of
the mixture. No pass over the data: sizes are those of the config or of dataset.json, and how many samples a step holds
is known once there was one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sail_train.data.config import DataConfig
from sail_train.data.dataset import dataset_size
from sail_train.data.listing import ShardList
from sail_train.data.mix import Mixture

log = logging.getLogger(__name__)


class Announcement:
    """Of one run's mixture, by the rank that logs.

    Args:
        asked: what the stream was asked for.
        shards: of each source of it.
        steps: of the whole run.
    """

    def __init__(self, config: DataConfig, asked: Mixture, shards: Mapping[str, ShardList], *, steps: int) -> None:
        self._config = config
        self._asked = asked
        self._steps = steps
        self._shares = mean_shares(asked, steps)
        self._shards = shards
        self._sizes = {name: config.sources[name].size or _size(name, paths) for name, paths in shards.items()}
        self._epochs_told = False

    def start(self) -> None:
        """Logs the table, and warns of sources that start after the last step."""
        rows = [("source", "asked share", "shards", "samples", "steps")]
        for name, paths in self._shards.items():
            first, last = self._asked.steps[name]
            when = "all" if not first and last is None else f"{first} to {'the end' if last is None else last}"
            size = self._sizes[name]
            rows.append((name, f"{self._shares[name]:.1%}", str(len(paths)), "?" if size is None else str(size), when))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        log.info("the mixture of %d steps:\n  %s", self._steps, "\n  ".join(lines))
        for name, (first, _) in self._asked.steps.items():
            if first >= self._steps:  # no error: a run of a few steps is how a long one is tried out
                log.warning(
                    "data.sources.%s.start_step=%d is not before train.max_steps=%d: nothing of it is read",
                    *(name, first, self._steps),
                )

    def epochs(self, samples_per_step: float) -> None:
        """Logs, once, how often the run reads each source whose size is known."""
        if self._epochs_told:
            return
        self._epochs_told = True
        told = [
            f"{name} {self._epochs(name, size, samples_per_step):.3g}" for name, size in self._sizes.items() if size
        ]
        if told:
            log.info(
                "about %.0f samples a step: %d steps read so many epochs of the sources' samples: %s",
                *(samples_per_step, self._steps, ", ".join(told)),
            )

    def _epochs(self, name: str, size: int, samples_per_step: float) -> float:
        asked = self._shares[name] * samples_per_step * self._steps / size
        limit = self._config.sources[name].epochs
        return asked if limit is None else min(asked, limit)


def mean_shares(asked: Mixture, steps: int) -> dict[str, float]:
    """The share of the samples of a whole run that is asked of each source."""
    ends = {0, steps, *(step for pair in asked.steps.values() for step in pair if step is not None and step < steps)}
    order = sorted(ends)
    shares = dict.fromkeys(asked.weights, 0.0)
    for first, last in zip(order[:-1], order[1:], strict=True):
        for name, share in asked.shares(first).items():
            shares[name] += share * (last - first) / steps
    return shares


def _size(name: str, shards: ShardList) -> int | None:
    try:
        return dataset_size(name, shards)
    except ValueError:
        return None
