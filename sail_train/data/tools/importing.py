"""`sail-train data import`: foreign records with their images and videos -> shards.

inputs -> spans of records -> one shard and one journal entry each, in processes of their own -> dataset.json, the list
of refused records, a summary. Bytes of images are kept as they are; each is decoded once to see that it can be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from sail_train.config import to_dataclass, to_mapping
from sail_train.data.dataset import DATASET, write_dataset
from sail_train.data.index import index_path
from sail_train.data.tools import LAYOUTS
from sail_train.data.tools.field_map import MARKS, UNMARKED, FieldMap, load_map, shipped
from sail_train.data.tools.import_job import SpanJob, SpanReport, done, tried_again
from sail_train.data.tools.import_plan import HELD, JOURNAL, ImportOptions, plan
from sail_train.data.tools.import_span import INDEXES, import_span
from sail_train.data.tools.import_told import ImportReport, plain, show
from sail_train.data.tools.jobs import SKIPPED, Summary, add_arguments, over_shards, parse_part


def import_records(options: ImportOptions) -> ImportReport:
    """Writes the shards that are not there yet, dataset.json, and the refused records beside them.

    Raises:
        ValueError: input that is no list of records, or shards that are there from another import.
    """
    _check_place(options.output)
    jobs = plan(options)
    if options.overwrite:
        _clear(options)
    _check_there(options, jobs)
    for folder in (options.output / JOURNAL, *([options.output / HELD] if options.hold_out else [])):
        folder.mkdir(parents=True, exist_ok=True)
    if options.retry_refused:
        _forget(jobs[options.part[0] :: options.part[1]])
    lines = {job.dump(): job.shard for job in jobs}
    summary = over_shards(list(lines), import_span, jobs=options.jobs, part=options.part, title="importing")
    return _report(options, jobs, {lines[line]: reason for line, reason in summary.failed.items()}, summary)


def _check_place(output: Path) -> None:
    """ValueError if the folder cannot be made, before the input is read for it."""
    above = next(place for place in (output.absolute(), *output.absolute().parents) if os.path.lexists(place))
    if not above.is_dir():
        raise ValueError(f"OUT {output}: {above} is not a folder; choose another one")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"OUT {output}: nothing can be written in {above}; choose another folder")


def _forget(jobs: list[SpanJob]) -> None:
    """The entries of shards from which a record was left out for its files: those are made again."""
    for job in jobs:
        entry = _entry(job)
        if entry is not None and tried_again(entry):
            Path(job.entry).unlink()


def _clear(options: ImportOptions) -> None:
    """Removes what the journal says was imported here, and what has the prefix of this import."""
    journal = options.output / JOURNAL
    folders = (options.output, options.output / HELD)
    imported = [folder / f"{entry.stem}.tar" for entry in journal.glob("*.json") for folder in folders]
    named = [path for folder in folders for path in folder.glob(f"{options.prefix}-[0-9]*.tar")]
    for path in (*named, *imported):
        path.unlink(missing_ok=True)
        Path(index_path(str(path))).unlink(missing_ok=True)
    for path in (*journal.glob("*.json"), options.output / DATASET):
        path.unlink(missing_ok=True)


def _check_there(options: ImportOptions, jobs: list[SpanJob]) -> None:
    """Refused before anything is written: what another import left would be mixed in by a glob."""
    planned = {shard for job in jobs for shard in (job.shard, job.held)}
    begun = (options.output / JOURNAL).is_dir()
    held = options.output / HELD
    for path in (*sorted(options.output.glob("*.tar")), *sorted(held.glob("*.tar") if options.hold_out else [])):
        if not begun or str(path) not in planned:
            raise ValueError(
                f"{path} is there already, from another import; choose another folder, or give --overwrite"
            )
    for job in jobs:
        done(job, retry=options.retry_refused)


def _report(options: ImportOptions, jobs: list[SpanJob], failed: dict[str, str], summary: Summary) -> ImportReport:
    """Of all journal entries: those of earlier runs and of other parts too."""
    counts = summary.counts
    report = ImportReport(
        failed=failed, skipped=int(counts.get(SKIPPED, 0)), indexes_removed=int(counts.get(INDEXES, 0))
    )
    refused: list[dict[str, Any]] = []
    entries = [(job, _entry(job)) for job in jobs]
    for job, entry in entries:
        if entry is None:
            continue
        for name in ("read", "written", "held", "images", "videos", "bytes"):
            setattr(report, name, getattr(report, name) + getattr(entry, name))
        refused += entry.refused
        report.unused.update(entry.unused)
        report.converted.update(entry.converted)
        report.shards += [Path(job.shard)] if entry.bytes else []
        report.held_shards += [Path(job.held)] if entry.held_bytes else []
    report.refused.update(line["reason"] for line in refused)
    report.complete = all(entry is not None for _, entry in entries) and not failed
    report.refused_file = _write_refused(options, refused)
    write_dataset(options.output, _described(options, report))
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
        "samples": report.written - report.held,
        "held_out": report.held,
        "images": report.images,
        "videos": report.videos,
        "bytes": report.bytes,
        "shards": len(report.shards),
        "read": report.read,
        "refused": dict(report.refused.most_common()),
        "fields_not_used": dict(report.unused.most_common()),
        "converted": dict(report.converted.most_common()),
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
    except (ValueError, OSError) as error:
        _parser().error(str(error))
    if args.json:
        Console(soft_wrap=True, highlight=False, markup=False).print(json.dumps(plain(report)))
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
    parser.add_argument("--images", type=Path, action="append", help="folder of images and videos (default: the "
                        "input's); given again, another one to look in, and for links to lead to")  # fmt: skip
    parser.add_argument("--marks", help=f"images that no text marks: {', '.join(MARKS)} (default auto: prepend for "
                        f"{' and '.join(UNMARKED)}, refuse for others)")  # fmt: skip
    parser.add_argument("--convert", action="store_true", help="make the first frame of a GIF, BMP, TIFF or animated "
                        "picture a PNG (default: it is refused)")  # fmt: skip
    parser.add_argument("--hold-out", type=float, default=0.0, metavar="SHARE", help="share of the records that goes "
                        f"to OUT/{HELD}, those of one image together (default 0)")  # fmt: skip
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument("--limit", type=int, default=0, help="records to read; 0 (default) reads all")
    parser.add_argument("--overwrite", action="store_true", help="begin anew: remove shards of the same prefix")
    parser.add_argument("--retry-refused", action="store_true", help="make the shards again from which records were "
                        "left out for their images or videos")  # fmt: skip
    parser.add_argument("--max-refused", type=float, default=0.05, help="share that still exits with 0 (default 0.05)")
    add_arguments(parser, shards=False)
    return parser


def _options(args: argparse.Namespace) -> ImportOptions:
    field_map = load_map(args.map) if args.map else FieldMap()
    given = {name: getattr(args, name) for name in ("layout", "marks", "verifier", "license", "origin")}
    return ImportOptions(
        input=args.source,
        output=args.out,
        prefix=args.prefix or args.out.resolve().name,
        map=dataclasses.replace(field_map, **{name: value for name, value in given.items() if value is not None}),
        images=tuple(args.images or ()),
        convert=args.convert,
        hold_out=args.hold_out,
        samples_per_shard=args.samples_per_shard,
        limit=args.limit,
        jobs=args.jobs,
        part=parse_part(args.part),
        overwrite=args.overwrite,
        retry_refused=args.retry_refused,
    )
