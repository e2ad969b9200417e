"""Parquet, as Hugging Face data sets have it: a span reads the row groups that it touches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sail_train.data.tools.records import Record, Span

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

ROWS_AT_ONCE = 64
"""Rows turned into Python objects at a time: they may hold images."""


def spans(path: str, size: int) -> Iterator[Span]:
    """From the file's footer alone."""
    rows = _open(path).metadata.num_rows
    for first in range(0, rows, size):
        yield Span(path=path, first=first, count=min(size, rows - first))


def read(span: Span) -> Iterator[Record]:
    import pyarrow

    file = _open(span.path)
    groups, skipped, end = [], 0, 0
    for number in range(file.metadata.num_row_groups):
        begin, end = end, end + file.metadata.row_group(number).num_rows
        if begin < span.first + span.count and end > span.first:
            groups.append(number)
            skipped = begin if len(groups) == 1 else skipped
    first, number = span.first - skipped, 0
    try:
        for rows in file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=groups):
            low, high = max(0, first - number), min(rows.num_rows, first + span.count - number)
            number += rows.num_rows
            if low < high:
                yield from rows.slice(low, high - low).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{span.path} cannot be read as Parquet: {error}") from error


def _open(path: str) -> ParquetFile:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
