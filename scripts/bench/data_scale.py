#!/usr/bin/env python
"""What a start costs at real scale, without the data: 100,000 shards, 240 million samples, 1,024 ranks.

    scripts/bench/data_scale.py                            the table of docs/data.md
    scripts/bench/data_scale.py --shards 100000 --ranks 1024 --streams 4096 --buffers 256 32

Each line is one rank of its own process: it names the shards, makes its logical streams, and fills their buffers from
shards that are made up (2,400 samples each; the reader, the mixture and the buffers are the real ones). What is
measured: seconds and Python memory until the first sample could be asked for; shards that are looked at on the disk
or opened by then; memory with full buffers, without the samples' bytes; and the size of the rank's position as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tracemalloc
from array import array
from typing import Any

SAMPLES = 2400
SAMPLE_BYTES = 100_000
SOURCES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--streams", type=int, default=4096, help="logical streams of the run")
    parser.add_argument("--buffers", type=int, nargs=2, default=[256, 32], help="shuffle_buffer and pack_buffer")
    parser.add_argument("--listed", action="store_true", help="name the shards by a list file in place of braces")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    print(f"{options.streams} streams, {SOURCES} sources, {SAMPLES} samples a shard, buffers {options.buffers}")
    titles = ("shards", "ranks", "units/rank", "start s", "start MB", "looked at", "opened", "full MB")
    print(" ".join(f"{title:>10}" for title in (*titles, "B/stream", "kB/rank")))
    for shards in options.shards:
        for ranks in options.ranks:
            line = one(options, shards, ranks)
            values = (shards, ranks, line["units"], f"{line['start_s']:.3f}", f"{line['start_mb']:.2f}",
                      line["looked_at"], line["opened"], f"{line['full_mb']:.2f}",
                      f"{line['position_b'] / line['streams']:.0f}", f"{line['position_b'] / 1000:.1f}")  # fmt: skip
            print(" ".join(f"{value:>10}" for value in values))


def one(options: argparse.Namespace, shards: int, ranks: int) -> dict[str, Any]:
    """A rank in a fresh process, whose memory no other has touched."""
    command = [sys.executable, __file__, "--one", "--shards", str(shards), "--ranks", str(ranks),
               "--streams", str(options.streams), "--buffers", *map(str, options.buffers)]  # fmt: skip
    command += ["--listed"] if options.listed else []
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from sail_train.data import shards as shards_module
    from sail_train.data.config import DataConfig, SourceConfig
    from sail_train.data.interleave import budget_of, candidates, mixture, shard_lists
    from sail_train.data.listing import names_hash

    (num_shards,), (ranks,) = options.shards, options.ranks
    counts = {"looked_at": 0, "opened": 0}
    real = os.path.isfile
    os.path.isfile = lambda path: counted(counts) if str(path).startswith("/simulated/") else real(path)
    shards_module.ShardFile = simulated_shard(counts)  # type: ignore[misc]
    each = num_shards // SOURCES
    config = DataConfig(
        sources={f"source_{n}": SourceConfig(shards=patterns(n, each, options.listed)) for n in range(SOURCES)},
        num_streams=options.streams,
        batch_rows=options.streams,
        shuffle_buffer=options.buffers[0],
    )
    tracemalloc.start()
    start = time.perf_counter()
    lists = shard_lists(config)
    for paths in lists.values():
        names_hash(paths)
    for source in config.sources.values():
        if options.listed:
            os.unlink(str(source.shards).removeprefix("@"))
    asked, budget = mixture(config, lists), budget_of(config)
    streams = [
        candidates(config, lists, seed=0, stream=stream, ledger=budget.ledger(), asked=asked)
        for stream in range(0, options.streams, ranks)
    ]
    start_s, start_mb = time.perf_counter() - start, tracemalloc.get_traced_memory()[0] / 1e6
    looked_at, opened = counts["looked_at"], counts["opened"]
    packed = [[next(stream) for _ in range(options.buffers[1])] for stream in streams]
    position = [
        {"pack": [candidate.place for candidate in waiting], **stream.state()}
        for stream, waiting in zip(streams, packed, strict=True)
    ]
    units = sum(len(reader._units) for stream in streams for reader in stream._mix.readers.values())
    return {"start_s": start_s, "start_mb": start_mb, "looked_at": looked_at, "opened": opened, "units": units,
            "full_mb": tracemalloc.get_traced_memory()[0] / 1e6, "position_b": len(json.dumps(position)),
            "streams": len(streams)}  # fmt: skip


def counted(counts: dict[str, int]) -> bool:
    counts["looked_at"] += 1
    return True


def patterns(source: int, shards: int, listed: bool) -> str:
    pattern = f"/simulated/source_{source}/{{000000..{shards - 1:06d}}}.tar"
    if not listed:
        return pattern
    import braceexpand

    path = f"/tmp/data_scale.{os.getpid()}.{source}.txt"
    with open(path, "w") as file:
        file.writelines(f"{name}\n" for name in braceexpand.braceexpand(pattern))
    return f"@{path}"


def simulated_shard(counts: dict[str, int]) -> type:
    from sail_train.data import tar
    from sail_train.types import RawSample

    class SimulatedShard:
        def __init__(self, path: str, *, source: str) -> None:
            self.path = self.name = path
            self.source = source
            self.bytes = SAMPLES * SAMPLE_BYTES

        def index(self, *_: Any, **__: Any) -> tar.Index:
            counts["opened"] += 1
            return tar.Index(starts=array("q", range(0, self.bytes, SAMPLE_BYTES)), end=self.bytes, bad={})

        def sample(self, index: tar.Index, place: int, **_: Any) -> RawSample:
            start = index.starts[place]
            return RawSample(key=str(place), source=self.source, shard=self.path, offset=start, members={})

        def close(self) -> None:
            pass

    return SimulatedShard


if __name__ == "__main__":
    main()
