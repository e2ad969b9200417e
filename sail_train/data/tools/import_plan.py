"""What an import is asked for -> one job for each shard that it is to make."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sail_train.data.tools.field_map import FieldMap
from sail_train.data.tools.import_span import SpanJob
from sail_train.data.tools.records import HUB, Span, inputs, spans

JOURNAL = ".import"
"""Folder beside the shards, with an entry for each shard that is done."""


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
    images: Path | None = None
    """Folder that paths of images are relative to, and must stay inside; None: the input's folder."""
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

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard={self.samples_per_shard} must be at least 1")
        if not self.prefix or self.prefix.startswith(".") or "/" in self.prefix:
            raise ValueError(f"prefix={self.prefix!r} must be the first part of a file's name")


def plan(options: ImportOptions) -> list[SpanJob]:
    """One job for each shard, in the order of the inputs; ValueError if an input is no list of records."""
    found = inputs(str(options.input), apart_from=options.output)
    root = _root(options)
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
                images=str(root),
                inside=_inside(options.map.roots, span.path),
                map=options.map,
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


def _root(options: ImportOptions) -> Path:
    if options.images is not None:
        if not options.images.is_dir():
            raise ValueError(f"--images {options.images} is not a folder")
        return options.images.resolve()
    source = Path(str(options.input).removeprefix(HUB))
    return (source if source.is_dir() else source.parent).resolve()


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
