"""`sail-train data index`: an index beside each shard, so that a flipped bit is caught and nothing is scanned at start.

shard -> read once: place and checksum of every sample -> x.index.parquet; then dataset.json of each folder, from its
indexes. A shard whose index fits is left as it is, with the columns that tools added; `--rebuild` makes it anew, and
refuses to lose samples that the old index had unless `--accept-loss`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sail_train.data import remote
from sail_train.data.dataset import DATASET, write_dataset
from sail_train.data.index import BAD, build_index, last_known, num_usable, read_index, write_index
from sail_train.data.shard_file import UnreadableShard
from sail_train.data.tools.jobs import SKIPPED, add_arguments, check_folder, over_shards, parse_part, shards_of, show


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="sail-train data index",
        description="Writes an index (offset, size, checksum of every sample) beside each shard, and dataset.json.",
        epilog="example: sail-train data index 'data/mine/*.tar' --jobs 8",
    )
    add_arguments(parser)
    parser.add_argument("--index-dir", help="a folder for the indexes of shards beside which none can be written")
    parser.add_argument("--rebuild", action="store_true", help="replace indexes, and what tools added to them")
    parser.add_argument(
        "--accept-loss", action="store_true", help="with --rebuild: also where a shard has fewer samples than it had"
    )
    options = parser.parse_args(arguments)
    if options.accept_loss and not options.rebuild:
        raise ValueError("--accept-loss is for --rebuild: nothing else replaces an index")
    paths, part = shards_of(options.shards), parse_part(options.part)
    if options.index_dir is not None:
        check_folder("--index-dir", Path(options.index_dir))
    work = (options.index_dir, options.rebuild, options.accept_loss)
    summary = over_shards(paths, index_shard, work, jobs=options.jobs, part=part, title="index")
    if part == (0, 1) and options.index_dir is None:
        describe_folders(paths)
    return show(summary, as_json=options.json, title="index")


def index_shard(shard: str, folder: str | None, rebuild: bool, accept_loss: bool = False) -> Mapping[str, Any]:
    """Indexes one shard, unless it has an index that fits; counts of what is in it.

    Raises:
        ValueError: `rebuild` without `accept_loss` of a shard that has fewer samples than its index says.
    """
    table = None if rebuild else read_index(shard, folder)
    made, lost = table is None, 0
    if table is None:
        table = build_index(shard)
        lost = _lost(shard, folder, table, accept_loss) if rebuild else 0
        write_index(shard, table, folder)
    reasons: dict[str, int] = {}
    for text in table.column(BAD).to_pylist() if BAD in table.column_names else ():
        if text:
            reason = text.partition(":")[0]
            reasons[reason] = reasons.get(reason, 0) + 1
    counts = {"samples": len(table), "bytes": sum(table.column("size").to_pylist())}
    counts |= {"samples lost": lost} if lost else {}
    return {**counts, **({} if made else {SKIPPED: 1}), **({"bad": reasons} if reasons else {})}


def _lost(shard: str, folder: str | None, table: Any, accept: bool) -> int:
    """How many samples fewer than the last index the new one has; ValueError unless that is none, or accepted."""
    before, now = last_known(shard, folder), num_usable(table)
    if before is None or before[0] <= now:
        return 0
    if not accept:
        raise ValueError(
            f"it was indexed with {before[0]} samples in {before[1]} bytes, and has {now} good ones now: "
            f"{before[0] - now} would be lost; copy the shard again, or give --accept-loss"
        )
    return before[0] - now


def describe_folders(paths: Sequence[str]) -> None:
    """Writes dataset.json of each folder whose shards, those named and any others, all have an index."""
    for folder in sorted({os.path.dirname(path) or "." for path in paths if not remote.is_remote(path)}):
        describe_folder(Path(folder))


def describe_folder(folder: Path) -> None:
    """Number of samples, bytes and shards, beside what an import said there (source, licence)."""
    shards = sorted(folder.glob("*.tar"))
    try:
        tables = [read_index(str(shard)) for shard in shards]
    except UnreadableShard:
        return
    known = [table for table in tables if table is not None]
    if len(known) < len(shards):
        return  # a sum of some of them would be taken for that of all
    path = folder / DATASET
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    sizes = {"samples": sum(map(len, known)), "bytes": sum(shard.stat().st_size for shard in shards)}
    write_dataset(folder, {**before, **sizes, "shards": len(shards)})
