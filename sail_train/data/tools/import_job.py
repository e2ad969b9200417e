"""One span's import as plain values, and the journal entry that says what became of it.

The entry is written after the shards and names what they were made from, so that an import that was cut off goes on
with the spans that have none, and none is made from two states of a file.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sail_train.config import to_dataclass
from sail_train.data.tools.field_map import FieldMap
from sail_train.data.tools.media import of_a_file
from sail_train.data.tools.records import Span


@dataclass(frozen=True, kw_only=True)
class SpanJob:
    """All that one span's import needs, as plain values: it travels to another process as JSON."""

    span: Span
    shard: str
    entry: str
    """Path of its journal entry."""
    key: str
    """What the sample's keys begin with, ahead of the record's number."""
    source: str
    """Name under which samples remember where they come from."""
    images: list[str]
    """Folders in which images are looked for, in this order, and which neither paths nor links may leave."""
    inside: str
    """Folder within it that is put before every path."""
    map: FieldMap
    convert: bool = False
    """Whether pictures of other formats become PNG."""
    hold_out: float = 0.0
    """Share of the records that goes into `held` instead."""
    held: str = ""
    """Shard of the records held out."""

    def dump(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def load(cls, line: str) -> SpanJob:
        values = json.loads(line)
        spans = Span(**values.pop("span"))
        return cls(span=spans, map=to_dataclass(FieldMap, values.pop("map")), **values)

    @property
    def fingerprint(self) -> str:
        """Of what the shard's content depends on: the input as it is now, and every setting."""
        path = Path(self.span.path)
        status = path.stat() if path.exists() else None
        given = [self.dump(), status and status.st_size, status and status.st_mtime_ns]
        return hashlib.blake2b(json.dumps(given).encode(), digest_size=16).hexdigest()


@dataclass(kw_only=True)
class SpanReport:
    """What became of a span's records."""

    fingerprint: str
    read: int = 0
    written: int = 0
    images: int = 0
    videos: int = 0
    bytes: int = 0
    """Of the shard; 0 if there is none, since every record was refused or held out."""
    held: int = 0
    """Of those written, the records that were held out."""
    held_bytes: int = 0
    """Of their shard."""
    unused: dict[str, int] = field(default_factory=dict)
    """Records written, by each field that they held something in and that was not used."""
    converted: dict[str, int] = field(default_factory=dict)
    """Images made PNG, by the format that they were."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """{input, record, id, reason, detail} of each."""


def done(job: SpanJob, *, retry: bool = False) -> SpanReport | None:
    """What an earlier run made of this span; None if that has to be done still, or again.

    Folders of images that come after those of the earlier run change nothing but what it refused for its files: an
    entry without any such record holds for them too, and one with some where those are tried again (`retry`).

    Raises:
        ValueError: it was imported with other settings, or from another file.
    """
    try:
        report = to_dataclass(SpanReport, json.loads(Path(job.entry).read_bytes()))
    except (FileNotFoundError, ValueError):  # an entry cut short is none
        return None
    if report.fingerprint != job.fingerprint:
        if not _with_fewer_folders(job, report.fingerprint):
            raise ValueError(
                f"{job.shard} was imported from another state of {job.span.path} or with other settings; choose "
                "another folder, or give --overwrite; further --images, after those that were given, go with "
                "--retry-refused"
            )
        if tried_again(report) and not retry:
            raise ValueError(
                f"{job.shard} was imported with fewer folders of images; give --retry-refused, which looks for what "
                "was refused in the others too, choose another folder, or give --overwrite"
            )
    there = [os.path.getsize(path) if os.path.exists(path) else 0 for path in (job.shard, job.held)]
    return report if there == [report.bytes, report.held_bytes] else None


def tried_again(report: SpanReport) -> bool:
    """Whether a record was refused for its files, which may be there now."""
    return any(of_a_file(line["reason"]) for line in report.refused)


def _with_fewer_folders(job: SpanJob, fingerprint: str) -> bool:
    """Whether that is the job's fingerprint but for the last of its folders."""
    fewer = (replace(job, images=job.images[:count]) for count in range(1, len(job.images)))
    return any(each.fingerprint == fingerprint for each in fewer)
