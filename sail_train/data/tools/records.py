"""Foreign files -> records: JSON, JSON lines and Parquet; nothing else is parsed, and nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sail_train.config import choice
from sail_train.types import BadSample

Record = Any | BadSample
"""What stands at one place of a file; a BadSample where it cannot be parsed."""


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, or of all files of a folder in the order of their names.

    Raises:
        ValueError: the file is missing, of an unknown kind, or no list of records.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in READERS)
        if not files:
            raise ValueError(f"{path} holds no {', '.join(READERS)} file")
        for file in files:
            yield from READERS[file.suffix](file)
        return
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    yield from choice("input file type", path.suffix, READERS)(path)


def _json(path: Path) -> Iterator[Record]:
    try:
        records = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); JSON lines belong in a .jsonl file") from error
    if not isinstance(records, list):
        raise ValueError(f"{path} holds {type(records).__name__}, not a list of records")
    yield from records


def _json_lines(path: Path) -> Iterator[Record]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield BadSample("bad_json", f"{path.name}, line {number}: {error}")


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        for rows in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
            yield from rows.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
"""How files of foreign records are read, by their suffix."""
