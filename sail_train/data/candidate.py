"""An undecoded sample between the shards and a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sail_train.types import RawSample


@dataclass(kw_only=True, slots=True)  # not frozen: one is made for every sample, and that takes three times as long
class Candidate:
    """An undecoded sample on its way to a row, and where to read it again."""

    raw: RawSample
    shard: int
    """Number of its shard in the source's list."""
    epoch: int
    size: int = 0
    """Bytes of the sample in its shard, headers included; 0 if that is not known."""
    place: list[Any] = field(init=False)
    """JSON: enough to read the sample again with one seek. Made once: every position holds it."""

    def __post_init__(self) -> None:
        self.place = [self.raw.source, self.shard, self.raw.offset, self.epoch, self.size]
