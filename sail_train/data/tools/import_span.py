"""One span of foreign records -> one shard, another of those held out, and a journal entry on what became of each.

Records read = written + refused; every refused one has its reason in the entry.
"""

from __future__ import annotations

import filecmp
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from sail_train.data.index import index_path
from sail_train.data.tools.converting import convert
from sail_train.data.tools.import_job import SpanJob, SpanReport, done
from sail_train.data.tools.jobs import SKIPPED
from sail_train.data.tools.records import read
from sail_train.data.writer import write_shard
from sail_train.types import BadSample, Conversation

INDEXES = "indexes removed"
"""Count of the indexes whose shards came out as others than they were."""


def import_span(line: str) -> Mapping[str, Any]:
    """Counts of one span (a dumped `SpanJob`); its shards and its journal entry are written if they are not there."""
    job = SpanJob.load(line)
    report, skipped, removed = done(job), 1, 0
    if report is None:
        report, skipped = SpanReport(fingerprint=job.fingerprint), 0
        with warnings.catch_warnings():
            # an image over the limit is refused by name: Pillow's own warning of it says nothing more
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            removed = _write(job, report)
    refused = Counter(entry["reason"] for entry in report.refused)
    counts = {"read": report.read, "written": report.written, "images": report.images, "videos": report.videos}
    return {**counts, "refused": dict(refused), SKIPPED: skipped, INDEXES: removed}


def _write(job: SpanJob, report: SpanReport) -> int:
    """Indexes that had to go with the shards that they were of."""
    held: list[Conversation] = []
    report.bytes, removed = _written(_conversations(job, report, held), job.shard)
    report.held_bytes, also = _written(iter(held), job.held)
    report.held = len(held)
    assert report.read == report.written + len(report.refused), "every record is written or refused"
    temporary = f"{job.entry}.{os.getpid()}.tmp"
    Path(temporary).write_text(json.dumps(asdict(report), ensure_ascii=False))
    os.replace(temporary, job.entry)
    return removed + also


def _written(samples: Iterator[Conversation], shard: str) -> tuple[int, int]:
    """(bytes of the shard, indexes removed); of no samples there is no shard, nor one that another run left.

    What tools found out about the samples stands in the index and nowhere else, so it stays where the shard comes out
    as it was. It goes ahead of a shard that changes: beside another one it would be taken for that one's.
    """
    first, index = next(samples, None), Path(index_path(shard))
    if first is None:
        if not shard:
            return 0, 0
        removed = _removed(index)
        Path(shard).unlink(missing_ok=True)
        return 0, removed
    removed = 0
    if index.exists():
        removed = _replaced(_with(first, samples), Path(shard), index)
    else:
        write_shard(_with(first, samples), Path(shard))
    return os.path.getsize(shard), removed


def _replaced(samples: Iterator[Conversation], shard: Path, index: Path) -> int:
    """Indexes removed by writing a shard that has one: none where its bytes are those that it had."""
    aside = shard.with_name(f".{shard.name}.{os.getpid()}.new")
    try:
        write_shard(samples, aside)
        if shard.exists() and filecmp.cmp(aside, shard, shallow=False):
            return 0
        removed = _removed(index)
        os.replace(aside, shard)
        return removed
    finally:
        aside.unlink(missing_ok=True)


def _removed(index: Path) -> int:
    there = index.exists()
    index.unlink(missing_ok=True)
    return int(there)


def _with(first: Conversation, rest: Iterator[Conversation]) -> Iterator[Conversation]:
    yield first
    yield from rest


def _conversations(job: SpanJob, report: SpanReport, held: list[Conversation]) -> Iterator[Conversation]:
    """Those for the shard, one by one; those to hold out are put into `held`: the few of one span."""
    unused: Counter[str] = Counter()
    converted: Counter[str] = Counter()
    for number, record in enumerate(read(job.span), start=job.span.first):
        report.read += 1
        try:
            made = convert(record, number, job)
        except BadSample as error:
            report.refused.append(_refusal(record, number, job, error))
            continue
        report.written += 1
        report.images += len(made.conversation.images)
        report.videos += len(made.conversation.videos)
        unused.update(_printable(name[:80]) for name in made.unused)
        converted.update(made.converted)
        if made.held:
            held.append(made.conversation)
        else:
            yield made.conversation
    report.unused, report.converted = dict(unused), dict(converted)


def _refusal(record: Any, number: int, job: SpanJob, error: BadSample) -> dict[str, Any]:
    name = record.get("id") if isinstance(record, Mapping) else None
    shown = _printable(str(name)[:200]) if name is not None else None
    where = {"input": job.span.path, "record": number, "id": shown}
    return {**where, "reason": error.reason, "detail": _printable(error.detail)}


def _printable(detail: str) -> str:
    """Without the halves of characters that no file takes."""
    return detail.encode(errors="backslashreplace").decode()
