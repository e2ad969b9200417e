"""What became of an import's records, over all its runs, and how that is told on the terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from sail_train.data.tools.media import ANIMATED, FORMAT, of_a_file

SHOWN = 20
"""Names of fields that are told on the terminal; dataset.json has all."""


@dataclass(kw_only=True)
class ImportReport:
    """What became of the records, over all runs of the import."""

    read: int = 0
    written: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Records by reason."""
    images: int = 0
    videos: int = 0
    bytes: int = 0
    shards: list[Path] = field(default_factory=list)
    held: int = 0
    """Of those written, the records that were held out."""
    held_shards: list[Path] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    """Records written, by each field that held something and was not used."""
    converted: Counter[str] = field(default_factory=Counter)
    """Images made PNG, by the format that they were."""
    refused_file: Path | None = None
    """Every refused record with its reason; None where there is none."""
    complete: bool = False
    """Whether every span is done; not so yet after one part of several."""
    skipped: int = 0
    """Shards that were there already."""
    indexes_removed: int = 0
    """Of shards that were made again and came out otherwise: scores, weights and duplicates are to be found anew."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by shard: an input that changed, or could not be read."""


def plain(report: ImportReport) -> dict[str, Any]:
    """For --json."""
    names = ("read", "written", "refused", "held", "unused", "converted", "images", "videos", "bytes",
             "complete", "skipped", "indexes_removed", "failed")  # fmt: skip
    values = {name: getattr(report, name) for name in names}
    shards = {name: [str(path) for path in getattr(report, name)] for name in ("shards", "held_shards")}
    refused = None if report.refused_file is None else str(report.refused_file)
    return {**values, **shards, "refused_file": refused}


def show(report: ImportReport) -> None:
    """Prints the summary."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    files = f"{report.images} images" + (f", {report.videos} videos" if report.videos else "")
    console.print(
        f"read {report.read} records = {report.written} written + {report.refused.total()} refused; "
        f"{len(report.shards)} shards, {files}"
    )
    if report.held_shards:
        console.print(f"of those, {report.held} are held out, in {report.held_shards[0].parent}")
    if report.skipped:
        console.print(f"{report.skipped} shards were there already")
    if report.indexes_removed:
        console.print(
            f"{report.indexes_removed} shards came out otherwise than they were: their indexes are removed; run again "
            "the tools that wrote scores, weights or duplicates into them",
            style="yellow",
        )
    if report.converted:
        console.print(f"first frames made PNG: {counted(report.converted)}")
    if report.unused:
        console.print(
            f"fields not used: {counted(report.unused)}; `meta` of a --map keeps what it names", style="yellow"
        )
    for reason, count in report.refused.most_common():
        console.print(f"refused {count}: {reason}", style="yellow")
    if shown := report.refused[FORMAT] + report.refused[ANIMATED]:
        console.print(f"{shown} are of formats that training does not read: --convert --overwrite makes them PNG")
    if waiting := sum(count for reason, count in report.refused.items() if of_a_file(reason)):
        console.print(f"{waiting} were refused for their files: mend those, then --retry-refused tries them again")
    if report.refused_file is not None:
        console.print(f"each refused record and why: {report.refused_file}")
    for shard, reason in report.failed.items():
        console.print(f"failed: {shard}: {reason}", style="red")
    if not report.complete:
        console.print("not complete: the same command goes on with what is missing", style="yellow")


def counted(counts: Counter[str]) -> str:
    """ "name (3), other (1)", the first of many."""
    named = ", ".join(f"{name} ({count})" for name, count in counts.most_common(SHOWN))
    return named if len(counts) <= SHOWN else f"{named} and {len(counts) - SHOWN} more"
