"""What an import is asked for -> one job for each shard that it is to make."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sail_train.data.tools.field_map import FieldMap
from sail_train.data.tools.import_job import SpanJob
from sail_train.data.tools.records import HUB, Span, inputs, spans

HELD = "valid"
"""Folder below the output for the records that are held out: no glob of the output's own shards matches it."""
JOURNAL = ".import"
"""Folder beside the shards, with an entry for each shard that is done."""
MOST_HELD = 0.5
"""The held ones of a shard wait in memory while the others are written."""


@dataclass(kw_only=True)
class ImportOptions:
    """What to import and where to."""

    input: str | Path
    """A .json, .jsonl, .parquet or .tar file, a folder of them or one that `datasets` saved, or hf:NAME."""
    output: Path
    """Folder of the shards."""
    prefix: str
    """First part of the shards' names; also the name under which samples remember their source."""
    map: FieldMap = field(default_factory=FieldMap)
    """Which field is what."""
    images: tuple[Path, ...] = ()
    """Folders in which images are looked for, in this order, and which neither paths nor links may leave; none: the
    input's folder."""
    convert: bool = False
    """Whether the first frame of a GIF, BMP, TIFF or animated picture becomes a PNG (default: it is refused)."""
    hold_out: float = 0.0
    """Share of the records that goes into shards of its own, in the folder `HELD` below the output."""
    samples_per_shard: int = 1000
    """Records read for one shard."""
    limit: int = 0
    """Records read of all; 0 reads all."""
    jobs: int = 1
    """Processes."""
    part: tuple[int, int] = (0, 1)
    """Only every N-th shard from the I-th on, as (I, N)."""
    overwrite: bool = False
    """Begin anew: remove the shards and the journal of the same prefix."""
    retry_refused: bool = False
    """Make those shards again from which a record was left out for its image or video."""

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard={self.samples_per_shard} must be at least 1")
        if not 0 <= self.hold_out <= MOST_HELD:
            raise ValueError(f"--hold-out {self.hold_out} must be a share of the records, at most {MOST_HELD}")
        if not self.prefix or self.prefix.startswith(".") or "/" in self.prefix:
            raise ValueError(f"prefix={self.prefix!r} must be the first part of a file's name")


def plan(options: ImportOptions) -> list[SpanJob]:
    """One job for each shard, in the order of the inputs; ValueError if an input is no list of records."""
    found = inputs(str(options.input), apart_from=options.output)
    folders = [str(folder) for folder in _folders(options)]
    jobs: list[SpanJob] = []
    for number, span, place in _limited(found, options):
        name = f"{number:05d}-" if len(found) > 1 else ""
        stem = f"{options.prefix}-{name}{place:06d}"
        jobs.append(
            SpanJob(
                span=span,
                shard=str(options.output / f"{stem}.tar"),
                entry=str(options.output / JOURNAL / f"{stem}.json"),
                key=name,
                source=options.prefix,
                images=folders,
                inside=_inside(options.map.roots, span.path),
                map=options.map,
                convert=options.convert,
                hold_out=options.hold_out,
                held=str(options.output / HELD / f"{stem}.tar") if options.hold_out else "",
            )
        )
    return jobs


def _limited(found: list[str], options: ImportOptions) -> Iterator[tuple[int, Span, int]]:
    """(number of the input, span, number of the span in it) up to the limit of records."""
    left = options.limit or sys.maxsize
    for number, path in enumerate(found):
        for place, span in enumerate(spans(path, options.samples_per_shard)):
            if left <= 0:
                return
            yield number, dataclasses.replace(span, count=min(span.count, left)), place
            left -= span.count


def _folders(options: ImportOptions) -> list[Path]:
    for folder in options.images:
        if not folder.is_dir():
            raise ValueError(f"--images {folder} is not a folder")
    source = Path(str(options.input).removeprefix(HUB))
    return [folder.resolve() for folder in options.images or (source if source.is_dir() else source.parent,)]


def _inside(roots: str, path: str) -> str:
    """The folder that the data set's own table names for an input."""
    if not roots:
        return ""
    folder = Path(path).resolve().parent
    table = next((place / roots for place in (folder, folder.parent) if (place / roots).is_file()), None)
    if table is None:
        raise ValueError(f"no {roots} beside {path} or above it, which says where its images are")
    try:
        entries = json.loads(table.read_bytes())
        found = [entry["root"] for entry in entries.values() if Path(entry["annotation"]).name == Path(path).name]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{table} is no table of {{annotation, root}}: {type(error).__name__}: {error}") from error
    if not found or not isinstance(found[0], str):
        raise ValueError(f"{table} has no entry for {Path(path).name}")
    return found[0].strip("/")
