"""`sail-train data import`: foreign records with their images and videos -> shards.

inputs -> spans of records -> one shard and one journal entry each, in processes of their own -> dataset.json, the list
of refused records, a summary. Bytes of images are kept as they are; each is decoded once to see that it can be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from sail_train.config import to_dataclass, to_mapping
from sail_train.data.index import index_path
from sail_train.data.tools import LAYOUTS
from sail_train.data.tools.field_map import FieldMap, load_map, shipped
from sail_train.data.tools.import_plan import JOURNAL, ImportOptions, plan
from sail_train.data.tools.import_span import SpanJob, SpanReport, done, import_span
from sail_train.data.tools.jobs import SKIPPED, Summary, add_arguments, over_shards, parse_part

DESCRIPTION = "dataset.json"


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
    refused_file: Path | None = None
    """Every refused record with its reason; None where there is none."""
    complete: bool = False
    """Whether every span is done; not so yet after one part of several."""
    skipped: int = 0
    """Shards that were there already."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by shard: an input that changed, or could not be read."""


def import_records(options: ImportOptions) -> ImportReport:
    """Writes the shards that are not there yet, dataset.json, and the refused records beside them.

    Raises:
        ValueError: input that is no list of records, or shards that are there from another import.
    """
    jobs = plan(options)
    if options.overwrite:
        _clear(options)
    _check_there(options, jobs)
    (options.output / JOURNAL).mkdir(parents=True, exist_ok=True)
    lines = {job.dump(): job.shard for job in jobs}
    summary = over_shards(list(lines), import_span, jobs=options.jobs, part=options.part, title="importing")
    return _report(options, jobs, {lines[line]: reason for line, reason in summary.failed.items()}, summary)


def _clear(options: ImportOptions) -> None:
    """Removes what the journal says was imported here, and what has the prefix of this import."""
    journal = options.output / JOURNAL
    imported = [options.output / f"{entry.stem}.tar" for entry in journal.glob("*.json")]
    for path in (*options.output.glob(f"{options.prefix}-[0-9]*.tar"), *imported):
        path.unlink(missing_ok=True)
        Path(index_path(str(path))).unlink(missing_ok=True)
    for path in (*journal.glob("*.json"), options.output / DESCRIPTION):
        path.unlink(missing_ok=True)


def _check_there(options: ImportOptions, jobs: list[SpanJob]) -> None:
    """Refused before anything is written: what another import left would be mixed in by a glob."""
    planned = {job.shard for job in jobs}
    begun = (options.output / JOURNAL).is_dir()
    for path in sorted(options.output.glob("*.tar")):
        if not begun or str(path) not in planned:
            raise ValueError(
                f"{path} is there already, from another import; choose another folder, or give --overwrite"
            )
    for job in jobs:
        done(job)


def _report(options: ImportOptions, jobs: list[SpanJob], failed: dict[str, str], summary: Summary) -> ImportReport:
    """Of all journal entries: those of earlier runs and of other parts too."""
    report = ImportReport(failed=failed, skipped=int(summary.counts.get(SKIPPED, 0)))
    refused: list[dict[str, Any]] = []
    entries = [(job, _entry(job)) for job in jobs]
    for job, entry in entries:
        if entry is None:
            continue
        for name in ("read", "written", "images", "videos", "bytes"):
            setattr(report, name, getattr(report, name) + getattr(entry, name))
        refused += entry.refused
        report.shards += [Path(job.shard)] if entry.bytes else []
    report.refused.update(line["reason"] for line in refused)
    report.complete = all(entry is not None for _, entry in entries) and not failed
    report.refused_file = _write_refused(options, refused)
    _write(
        options.output / "dataset.json", json.dumps(_described(options, report), indent=1, ensure_ascii=False) + "\n"
    )
    return report


def _entry(job: SpanJob) -> SpanReport | None:
    try:
        return to_dataclass(SpanReport, json.loads(Path(job.entry).read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


def _write_refused(options: ImportOptions, refused: list[dict[str, Any]]) -> Path | None:
    path = options.output / f"{options.prefix}-refused.jsonl"
    if not refused:
        path.unlink(missing_ok=True)
        return None
    _write(path, "".join(json.dumps(line) + "\n" for line in refused))
    return path


def _described(options: ImportOptions, report: ImportReport) -> dict[str, Any]:
    """dataset.json: what the folder holds and where it comes from."""
    return {
        "name": options.prefix,
        "samples": report.written,
        "images": report.images,
        "videos": report.videos,
        "bytes": report.bytes,
        "shards": len(report.shards),
        "read": report.read,
        "refused": dict(report.refused.most_common()),
        "complete": report.complete,
        "source": options.map.origin,
        "license": options.map.license,
        "input": str(options.input),
        "map": to_mapping(options.map),
    }


def _write(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def run(argv: list[str]) -> int:
    """The command; 0 if no more records than --max-refused were refused, and nothing failed."""
    args = _parser().parse_args(argv)
    try:
        report = import_records(_options(args))
    except ValueError as error:
        _parser().error(str(error))
    if args.json:
        Console(soft_wrap=True, highlight=False, markup=False).print(json.dumps(_plain(report)))
    else:
        show(report)
    good = report.written > 0 and report.refused.total() <= args.max_refused * report.read
    return 0 if good and not report.failed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sail-train data import",
        description="Turn foreign records and their images and videos into shards.",
        epilog="example: sail-train data import --map llava_pretrain LLaVA-Pretrain/blip_laion_cc_sbu_558k.json "
        f"data/llava --images LLaVA-Pretrain/images --jobs 8. Maps: {', '.join(shipped())}.",
    )
    parser.add_argument("source", metavar="SRC", help="a .json, .jsonl, .parquet or .tar file, a folder of such "
                        "files or one that `datasets` saved, or hf:NAME[:SUBSET[:SPLIT]] of the Hub")  # fmt: skip
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the shards")
    parser.add_argument("--map", help="field map: one of those below, or the path of a .yaml file")
    parser.add_argument("--layout", help=f"how records are read: {', '.join(LAYOUTS)} (default: by their keys)")
    parser.add_argument("--verifier", help="what answers are graded by, where a record names nothing")
    parser.add_argument("--license", help="recorded with every sample")
    parser.add_argument("--origin", help="address that the data come from; recorded with every sample")
    parser.add_argument("--prefix", help="first part of the shards' names, and name of the source (default: OUT's)")
    parser.add_argument("--images", type=Path, help="folder of images and videos (default: the input's)")
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument("--limit", type=int, default=0, help="records to read; 0 (default) reads all")
    parser.add_argument("--overwrite", action="store_true", help="begin anew: remove shards of the same prefix")
    parser.add_argument("--max-refused", type=float, default=0.05, help="share that still exits with 0 (default 0.05)")
    add_arguments(parser, shards=False)
    return parser


def _options(args: argparse.Namespace) -> ImportOptions:
    field_map = load_map(args.map) if args.map else FieldMap()
    given = {name: getattr(args, name) for name in ("layout", "verifier", "license", "origin")}
    return ImportOptions(
        input=args.source,
        output=args.out,
        prefix=args.prefix or args.out.resolve().name,
        map=dataclasses.replace(field_map, **{name: value for name, value in given.items() if value is not None}),
        images=args.images,
        samples_per_shard=args.samples_per_shard,
        limit=args.limit,
        jobs=args.jobs,
        part=parse_part(args.part),
        overwrite=args.overwrite,
    )


def _plain(report: ImportReport) -> dict[str, Any]:
    names = ("read", "written", "refused", "images", "videos", "bytes", "complete", "skipped", "failed")
    values = {name: getattr(report, name) for name in names}
    return {**values, "shards": [str(path) for path in report.shards], "refused_file": _name(report.refused_file)}


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)


def show(report: ImportReport) -> None:
    """Prints the summary."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    files = f"{report.images} images" + (f", {report.videos} videos" if report.videos else "")
    console.print(
        f"read {report.read} records = {report.written} written + {report.refused.total()} refused; "
        f"{len(report.shards)} shards, {files}"
    )
    if report.skipped:
        console.print(f"{report.skipped} shards were there already")
    for reason, count in report.refused.most_common():
        console.print(f"refused {count}: {reason}", style="yellow")
    if report.refused_file is not None:
        console.print(f"each refused record and why: {report.refused_file}")
    for shard, reason in report.failed.items():
        console.print(f"failed: {shard}: {reason}", style="red")
    if not report.complete:
        console.print("not complete: the same command goes on with what is missing", style="yellow")
