"""Foreign files -> spans of records -> records. Nothing is unpickled, run or extracted.

A span is what one process imports in one go: some consecutive records of one file, with where to seek to. Finding the
spans reads each file's frame once (lines, row counts, tar headers); a JSON list is parsed for it, one record at a time.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sail_train.config import choice
from sail_train.data.tools import RECORD_FILES
from sail_train.types import BadSample

Record = Any | BadSample
"""What stands at one place of a file; a BadSample where it cannot be parsed."""

HUB = "hf:"
"""What a name begins with that the `datasets` library is to look up, as in hf:NAME:SUBSET:SPLIT."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive records of one input."""

    path: str
    first: int
    """Number of its first record in the input."""
    count: int
    start: int = 0
    """Byte at which it begins, and `end` it ends, where the input is read by bytes."""
    end: int = 0
    line: int = 0
    """Number of its first line, for inputs of lines."""


def inputs(source: str, *, apart_from: Path | None = None) -> list[str]:
    """The inputs that a file, a folder or a name `hf:...` stands for, in order; nothing below `apart_from`.

    Of a folder its files of records count, or, where it has none itself, those of the folders in it; a folder that
    `datasets` saved is one input.

    Raises:
        ValueError: nothing is there that could be read.
    """
    path = Path(source)
    if source.startswith(HUB):
        return [source]
    if path.is_file():
        choice("input file type", path.suffix, RECORD_FILES)
        return [source]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist; a data set of the Hugging Face Hub is named hf:{source}")
    if (path / "state.json").is_file():
        return [f"{HUB}{source}"]
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
        raise ValueError(f"{path} holds several splits ({splits}); name one, as in {path / 'train'}")
    files = _files(path.iterdir(), apart_from) or _files(path.rglob("*"), apart_from)
    if not files:
        raise ValueError(f"{path} holds no {', '.join(suffixes())} file")
    return files


def suffixes() -> list[str]:
    return [name for name in RECORD_FILES if name.startswith(".")]


def _files(entries: Iterator[Path], apart_from: Path | None) -> list[str]:
    own = apart_from.resolve() if apart_from is not None else None
    found = [entry for entry in entries if entry.suffix in suffixes() and not entry.name.startswith(".")]
    kept = [entry for entry in found if entry.is_file() and (own is None or not entry.resolve().is_relative_to(own))]
    return [str(entry) for entry in sorted(kept)]


def spans(path: str, size: int) -> Iterator[Span]:
    """The spans of one input, `size` records each but the last.

    Raises:
        ValueError: the input is no list of records.
    """
    yield from _reader(path).spans(path, size)


def read(span: Span) -> Iterator[Record]:
    """The records of a span.

    Raises:
        ValueError: the file is not what it was when the span was made.
    """
    found = 0
    for record in itertools.islice(_reader(span.path).read(span), span.count):
        found += 1
        yield record
    if found < span.count:
        raise ValueError(
            f"{span.path} changed while it was read: {found} records from {span.first} on, not {span.count}"
        )


def _reader(path: str) -> ModuleType:
    return importlib.import_module(RECORD_FILES[HUB if path.startswith(HUB) else Path(path).suffix])
