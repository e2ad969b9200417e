"""One span of foreign records -> one shard, another of those held out, and a journal entry on what became of each.

Records read = written + refused; every refused one has its reason in the entry.
"""

from __future__ import annotations

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


def import_span(line: str) -> Mapping[str, Any]:
    """Counts of one span (a dumped `SpanJob`); its shards and its journal entry are written if they are not there."""
    job = SpanJob.load(line)
    report, skipped = done(job), 1
    if report is None:
        report, skipped = SpanReport(fingerprint=job.fingerprint), 0
        with warnings.catch_warnings():
            # an image over the limit is refused by name: Pillow's own warning of it says nothing more
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            _write(job, report)
    refused = Counter(entry["reason"] for entry in report.refused)
    counts = {"read": report.read, "written": report.written, "images": report.images, "videos": report.videos}
    return {**counts, "refused": dict(refused), SKIPPED: skipped}


def _write(job: SpanJob, report: SpanReport) -> None:
    held: list[Conversation] = []
    report.bytes = _written(_conversations(job, report, held), job.shard)
    report.held, report.held_bytes = len(held), _written(iter(held), job.held)
    assert report.read == report.written + len(report.refused), "every record is written or refused"
    temporary = f"{job.entry}.{os.getpid()}.tmp"
    Path(temporary).write_text(json.dumps(asdict(report), ensure_ascii=False))
    os.replace(temporary, job.entry)


def _written(samples: Iterator[Conversation], shard: str) -> int:
    """Bytes of the shard; of no samples there is none, nor one that another run left."""
    if shard:
        Path(index_path(shard)).unlink(missing_ok=True)
    first = next(samples, None)
    if first is None:
        if shard:
            Path(shard).unlink(missing_ok=True)
        return 0
    write_shard(_with(first, samples), Path(shard))
    return os.path.getsize(shard)


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
