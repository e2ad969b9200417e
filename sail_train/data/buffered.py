"""How much host memory the waiting samples of a rank take, told from those that were measured; a warning if too much.

Nothing bounds it in bytes, because the order must not depend on memory (docs/balance.md): so it is told early, when
the first buffers of the first stream are full and the other streams' are not yet.
"""

from __future__ import annotations

import logging
import math

from sail_train.data.config import DataConfig
from sail_train.types import Encoded

log = logging.getLogger(__name__)

FEWEST = 8
"""Samples before anything is said of their mean."""


class Buffered:
    """The bytes that samples are of, and what those that wait come to. It changes nothing.

    Args:
        streams: logical streams of a rank.
        warns: whether it is this one that warns: one of a whole run is enough, for all streams read one mixture.
    """

    def __init__(self, config: DataConfig, *, streams: int, warns: bool) -> None:
        self.samples = streams * (config.shuffle_buffer + config.pack_buffer)
        """Of a rank, when its buffers are full."""
        self._config = config
        self._warns = warns and config.buffer_warning_gib is not None
        self._count, self._sum, self._squares = 0.0, 0.0, 0.0

    def add(self, encoded: Encoded) -> None:
        """A sample was measured."""
        if not self._warns:
            return
        size = encoded.input_ids.nbytes + encoded.labels.nbytes
        for visual in encoded.visuals:
            size += len(visual.data)
        self._count, self._sum, self._squares = self._count + 1, self._sum + size, self._squares + size * size
        if self._count >= 2 * self.samples:  # a mixture changes: those of long ago count less and less
            self._count, self._sum, self._squares = self._count / 2, self._sum / 2, self._squares / 2

    def check(self) -> None:
        """Warns, once, when the waiting samples of a rank are over `data.buffer_warning_gib` beyond chance.

        A few videos among many texts make a mean that means little: the limit is compared with two standard errors
        less than the mean.
        """
        if not self._warns or self._count < FEWEST:
            return
        mean = self._sum / self._count
        error = math.sqrt(max(0.0, self._squares / self._count - mean * mean) / self._count)
        limit = self._config.buffer_warning_gib
        assert limit is not None
        if self.samples * (mean - 2 * error) <= limit * 2**30:
            return
        self._warns = False
        buffers = ["shuffle_buffer", "pack_buffer"]
        lower = max(buffers, key=lambda name: vars(self._config)[name])
        log.warning(
            "samples of %.3g MB on average: with full buffers %d of them wait on every rank, %.3g GiB of host memory "
            "for each (data.buffer_warning_gib=%g). If the hosts have less, lower data.%s=%d and begin a new run: it "
            "is part of the order",
            mean / 1e6, self.samples, self.samples * mean / 2**30, limit, lower, vars(self._config)[lower],
        )  # fmt: skip
