"""JSON lines: one record a line, blank lines apart; a line that is no JSON is one bad record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from sail_train.data.tools.records import Record, Span
from sail_train.types import BadSample


def spans(path: str, size: int) -> Iterator[Span]:
    """Reads through the lines without parsing them."""
    first, count, start, begin = 0, 0, 0, 1
    offset = number = 0
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            offset += len(line)
            count += bool(line.strip())
            if count == size:
                yield Span(path=path, first=first, count=count, start=start, end=offset, line=begin)
                first, count, start, begin = first + count, 0, offset, number + 1
    if count:
        yield Span(path=path, first=first, count=count, start=start, end=offset, line=begin)


def read(span: Span) -> Iterator[Record]:
    with open(span.path, "rb") as file:
        file.seek(span.start)
        for number, line in enumerate(file.read(span.end - span.start).split(b"\n"), start=span.line):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield BadSample("bad_json", f"{Path(span.path).name}, line {number}: {error}")
