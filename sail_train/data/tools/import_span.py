"""One span of foreign records -> one shard, and a journal entry that says what became of each record.

The entry is written after the shard and names what it was made from, so that an import that was cut off goes on with
the spans that have none. Records read = written + refused; every refused one has its reason in the entry.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sail_train.config import to_dataclass
from sail_train.data.conversation import MODES, text
from sail_train.data.tools import LAYOUTS
from sail_train.data.tools.field_map import FieldMap, rewritten
from sail_train.data.tools.imported import Imported, placed
from sail_train.data.tools.jobs import SKIPPED
from sail_train.data.tools.media import load_image, load_video
from sail_train.data.tools.records import Record, Span, read
from sail_train.data.writer import write_shard
from sail_train.rewards import VERIFIERS
from sail_train.types import BadSample, Conversation, Message, Part


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
    images: str
    """Folder that images are relative to and may not leave."""
    inside: str
    """Folder within it that is put before every path."""
    map: FieldMap

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
    """Of the shard; 0 if there is none, since every record was refused."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """{input, record, id, reason, detail} of each."""


def import_span(line: str) -> Mapping[str, Any]:
    """Counts of one span (a dumped `SpanJob`); its shard and its journal entry are written if they are not there."""
    job = SpanJob.load(line)
    report, skipped = done(job), 1
    if report is None:
        report, skipped = SpanReport(fingerprint=job.fingerprint), 0
        _write(job, report)
    refused: dict[str, int] = {}
    for entry in report.refused:
        refused[entry["reason"]] = refused.get(entry["reason"], 0) + 1
    counts = {"read": report.read, "written": report.written, "images": report.images, "videos": report.videos}
    return {**counts, "refused": refused, SKIPPED: skipped}


def done(job: SpanJob) -> SpanReport | None:
    """What an earlier run made of this span; None if that has to be done still, or again.

    Raises:
        ValueError: it was imported with other settings, or from another file.
    """
    try:
        report = to_dataclass(SpanReport, json.loads(Path(job.entry).read_bytes()))
    except (FileNotFoundError, ValueError):  # an entry cut short is none
        return None
    if report.fingerprint != job.fingerprint:
        raise ValueError(
            f"{job.shard} was imported from another state of {job.span.path} or with other settings; choose another "
            "folder, or give --overwrite"
        )
    there = os.path.getsize(job.shard) if os.path.exists(job.shard) else 0
    return report if there == report.bytes else None


def _write(job: SpanJob, report: SpanReport) -> None:
    samples = _conversations(job, report)
    first = next(samples, None)
    if first is not None:
        write_shard(_with(first, samples), Path(job.shard))
        report.bytes = os.path.getsize(job.shard)
    assert report.read == report.written + len(report.refused), "every record is written or refused"
    temporary = f"{job.entry}.{os.getpid()}.tmp"
    Path(temporary).write_text(json.dumps(asdict(report), ensure_ascii=False))
    os.replace(temporary, job.entry)


def _with(first: Conversation, rest: Iterator[Conversation]) -> Iterator[Conversation]:
    yield first
    yield from rest


def _conversations(job: SpanJob, report: SpanReport) -> Iterator[Conversation]:
    for number, record in enumerate(read(job.span), start=job.span.first):
        report.read += 1
        try:
            conversation = convert(record, number, job)
        except BadSample as error:
            name = record.get("id") if isinstance(record, Mapping) else None
            where = {
                "input": job.span.path,
                "record": number,
                "id": _printable(str(name)[:200]) if name is not None else None,
            }
            report.refused.append({**where, "reason": error.reason, "detail": _printable(error.detail)})
            continue
        report.written += 1
        report.images += len(conversation.images)
        report.videos += len(conversation.videos)
        yield conversation


def _printable(detail: str) -> str:
    """Without the halves of characters that no file takes."""
    return detail.encode(errors="backslashreplace").decode()


def convert(record: Record, number: int, job: SpanJob) -> Conversation:
    """A record as a sample, its files read and decoded; BadSample if that cannot be."""
    if isinstance(record, BadSample):
        raise record
    if not isinstance(record, Mapping):
        raise BadSample("bad_record", f"is {type(record).__name__}, not an object")
    named = job.map.apply(record)
    if job.map.verifier and not named.get("verifier"):
        named["verifier"] = job.map.verifier
    imported = placed(_read(named, job.map.layout), prepend=job.map.marks == "prepend")
    if job.map.thought is not None:
        imported = dataclasses.replace(imported, messages=_thinking(imported, job.map))
    graded = _graded(named)
    root = Path(job.images)
    return Conversation(
        key=f"{job.key}{number:08d}",
        source=job.source,
        messages=imported.messages,
        images=tuple(load_image(_inside(ref, job.inside), root) for ref in imported.images),
        videos=tuple(load_video(_inside(ref, job.inside), root) for ref in imported.videos),
        answer=graded["answer"],
        verifier=graded["verifier"],
        mode=graded["mode"] or _mode(imported),
        meta=_meta(record, named, imported, job.map),
    )


def _read(record: Mapping[str, Any], layout: str) -> Imported:
    names = list(LAYOUTS) if layout == "auto" else [layout]
    for name in names:
        module = importlib.import_module(LAYOUTS[name])
        if module.matches(record):
            return module.read(record)
    keys = ", ".join(map(str, list(record)[:8]))
    raise BadSample("unknown_layout", f"keys {keys} are those of no layout ({', '.join(names)})")


def _thinking(imported: Imported, field_map: FieldMap) -> tuple[Message, ...]:
    """The messages, assistant turns with their tagged sections made a thought and an answer."""
    sections = field_map.thought
    assert sections is not None, "asked for by a map that has them"
    return tuple(
        Message(role=each.role, content=(Part(type="text", text=rewritten(each.text, sections)),))
        if each.role == "assistant"
        else each
        for each in imported.messages
    )


def _graded(record: Mapping[str, Any]) -> dict[str, str | None]:
    """Answer, verifier and mode: texts, and names that exist. A number is an answer too, in a question's record."""
    values: dict[str, str | None] = {}
    for name in ("answer", "verifier", "mode"):
        value = record.get(name)
        if name == "answer" and "messages" not in record and "conversations" not in record:
            value = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        if value is not None and not isinstance(value, str):
            raise BadSample("bad_field", f"{name}={value!r:.80} should be a text")
        values[name] = None if value is None else text(value)
    if values["mode"] not in MODES:
        raise BadSample("bad_field", f"mode={values['mode']!r:.80} must be 'think' or 'direct'")
    if values["verifier"] is not None and values["verifier"] not in VERIFIERS:
        raise BadSample("bad_field", f"verifier={values['verifier']!r:.80} is none of {', '.join(VERIFIERS)}")
    return values


def _mode(imported: Imported) -> str | None:
    """How the last answer opens: with a thought or not; None without an answer."""
    last = imported.messages[-1]
    if last.role != "assistant":
        return None
    return "think" if last.text.lstrip().startswith("<think>") else "direct"


def _inside(ref: Any, folder: str) -> Any:
    """A path below the folder that its input names; anything but a path as it is."""
    name = ref.get("path") if isinstance(ref, Mapping) and not ref.get("bytes") else ref
    return f"{folder}/{name}" if folder and isinstance(name, str) and not name.startswith("data:") else ref


def _meta(
    record: Mapping[str, Any], named: Mapping[str, Any], imported: Imported, field_map: FieldMap
) -> dict[str, Any]:
    meta: dict[str, Any] = {name: text(value) if isinstance(value, str) else value for name, value in
                            field_map.kept(record).items()}  # fmt: skip
    if named.get("id") is not None:
        meta["id"] = text(str(named["id"]))
    for name, value in (("license", field_map.license), ("origin", field_map.origin)):
        if value:
            meta[name] = value
    if imported.rejected is not None:
        meta["preference"] = {"chosen": imported.messages[-1].text, "rejected": imported.rejected}
    return meta
