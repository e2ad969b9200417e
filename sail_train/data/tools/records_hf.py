"""Data sets through the `datasets` library: by the name that a user gave, or a folder that it saved.

No code of a data set is run (`trust_remote_code` is not asked for, and the library no longer knows it), and pictures
are taken as their stored bytes, undecoded. The library is the extra `import`, imported when it is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sail_train.data.tools.records import HUB, Record, Span

ROWS_AT_ONCE = 64
SPLIT = "train"
"""Which split is read where none is named."""


def spans(path: str, size: int) -> Iterator[Span]:
    rows = len(_opened(path))
    for first in range(0, rows, size):
        yield Span(path=path, first=first, count=min(size, rows - first))


def read(span: Span) -> Iterator[Record]:
    table = _opened(span.path)
    end = min(span.first + span.count, len(table))
    for first in range(span.first, end, ROWS_AT_ONCE):
        # as arrow: the format that would decode pictures is never asked
        yield from table[first : min(first + ROWS_AT_ONCE, end)].to_pylist()


@functools.lru_cache(maxsize=1)
def _opened(path: str) -> Any:
    """The data set in arrow format; ValueError if the library is missing, or does not find it."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{path} needs the datasets library: pip install 'sail-train[import]' ({error})") from error
    name, subset, split = parse(path)
    try:
        if (Path(name) / "state.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be opened: {type(error).__name__}: {error}") from error
    return found.with_format("arrow")


def parse(path: str) -> tuple[str, str | None, str]:
    """(name, subset, split) of hf:NAME, hf:NAME:SUBSET or hf:NAME:SUBSET:SPLIT; an empty subset is none."""
    name, _, rest = path.removeprefix(HUB).partition(":")
    subset, _, split = rest.partition(":")
    if not name:
        raise ValueError(f"{path!r} names no data set; write hf:NAME, hf:NAME:SUBSET or hf:NAME:SUBSET:SPLIT")
    return name, subset or None, split or SPLIT
