"""A webdataset tar: the .json of a key is its record, and the pictures and films beside it are that record's.

They take the place of whatever paths the .json gives for them. Members that are never read are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sail_train.data.conversation import read_images, read_json, read_videos
from sail_train.data.shard_file import ShardFile
from sail_train.data.tools.records import Record, Span
from sail_train.types import BadSample, RawSample


def spans(path: str, size: int) -> Iterator[Span]:
    """From the headers alone."""
    rows = len(ShardFile(path, source="import").index())
    for first in range(0, rows, size):
        yield Span(path=path, first=first, count=min(size, rows - first))


def read(span: Span) -> Iterator[Record]:
    file = ShardFile(span.path, source="import")
    try:
        index = file.index()
        for place in range(span.first, min(span.first + span.count, len(index))):
            try:
                yield _record(file.sample(index, place))
            except BadSample as error:
                key = index.bad[place][0] if place in index.bad else ""
                yield BadSample(error.reason, f"{Path(span.path).name} {key!r}: {error.detail}")
    finally:
        file.close()


def _record(raw: RawSample) -> Record:
    record = read_json(raw)
    if record is None:
        raise BadSample("no_json", f"has only {', '.join(sorted(raw.members))}")
    for kind, files in (("image", read_images(raw)), ("video", read_videos(raw))):
        if files:
            record = {name: value for name, value in record.items() if name != kind} | {f"{kind}s": list(files)}
    return {"id": raw.key, **record}
