"""Which part of a source's shards is one logical stream's: whole shards where that is fair, else stripes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

UNITS_PER_STREAM = 16
"""A stream reads at least this many pieces where shards do not divide evenly: shares then differ by 1/16 at most."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What a stream reads in one go: samples i of a shard with i mod stripes == stripe."""

    shard: int
    stripe: int
    stripes: int


@dataclass(frozen=True, kw_only=True)
class Share(Sequence[Unit]):
    """A stream's units, made when they are asked for."""

    num_shards: int
    stripes: int
    numbers: range
    """Of the units, counted over all streams: stripe by stripe, in each all shards."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        stripe, shard = divmod(self.numbers[place], self.num_shards)
        return Unit(shard=shard, stripe=stripe, stripes=self.stripes)


def share(num_shards: int, num_streams: int, stream: int) -> Share:
    """The part of a source that is `stream`'s: whole shards where they divide evenly or are many, else stripes.

    With n shards, streams read shards[k::S] if S divides n, and shard k mod n striped by sample if n divides S;
    in between the shards are striped just finely enough that no stream's share is more than 1/16 larger than
    another's, so that each sample is seen equally often.
    """
    exact = num_streams // math.gcd(num_shards, num_streams)
    stripes = min(exact, -(-UNITS_PER_STREAM * num_streams // num_shards))
    return Share(num_shards=num_shards, stripes=stripes, numbers=range(stream, num_shards * stripes, num_streams))
