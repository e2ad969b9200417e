"""A JSON file that is one list of records: found by their bytes, so that every process parses only its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from sail_train.data.tools.records import Record, Span

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def spans(path: str, size: int) -> Iterator[Span]:
    """Parses the file once, one record at a time; ValueError if it is no list of records."""
    content = Path(path).read_bytes()
    offset = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    try:
        text = content[offset:].decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON in UTF-8 ({error.reason} at byte {error.start}); {_ENCODED}") from error
    del content
    try:
        yield from _spans(path, text, offset, size)
    except (json.JSONDecodeError, _BrokenError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}){_remedy(text)}") from error


_ENCODED = "convert it, as in: iconv -f GBK -t UTF-8 OLD.json > NEW.json"


class _BrokenError(ValueError):
    """What stands between two records, or behind the last, is not what JSON has there."""


def _remedy(text: str) -> str:
    """What may have become of a file that does not parse."""
    whole = text.strip()
    if not whole:
        return ": it is empty"
    first, _, rest = whole.partition("\n")
    if first.lstrip().startswith("{") and rest.lstrip().startswith("{") and _parses(first):
        return "; JSON lines belong in a .jsonl file: rename it"
    if whole[0] == "[" and whole[-1] != "]":
        return "; its list has no end: was the file cut short?"
    return ""


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _spans(path: str, text: str, offset: int, size: int) -> Iterator[Span]:
    place = _after_space(text, 0)
    if text[place : place + 1] != "[":
        raise ValueError(f"{path} holds {type(json.loads(text)).__name__}, not a list of records")
    begin, first, count, done = place + 1, 0, 0, 0
    for end, last in _ends(text, begin):
        count += 1
        if count == size or last:
            # characters are counted in bytes from the span before on: once over the whole file
            start, offset = offset + len(text[done:begin].encode()), offset + len(text[done:end].encode())
            yield Span(path=path, first=first, count=count, start=start, end=offset)
            first, count, done, begin = first + count, 0, end, _after_space(text, end) + 1


def _ends(text: str, place: int) -> Iterator[tuple[int, bool]]:
    """(place behind a record, whether it is the last one)."""
    place = _after_space(text, place)
    closed = text[place : place + 1] == "]"
    while not closed:
        end = _DECODER.raw_decode(text, place)[1]
        place = _after_space(text, end)
        closed = text[place : place + 1] == "]"
        if not closed and text[place : place + 1] != ",":
            raise _BrokenError(f"no comma at character {place}")
        yield end, closed
        place = place if closed else _after_space(text, place + 1)
    if _after_space(text, place + 1) != len(text):
        raise _BrokenError(f"more after the list, at character {place + 1}")


def _after_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match is not None, "it matches nothing at all"
    return match.end()


def read(span: Span) -> Iterator[Record]:
    with open(span.path, "rb") as file:
        file.seek(span.start)
        content = file.read(span.end - span.start)
    try:
        records = json.loads(b"[" + content + b"]")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{span.path} changed while it was read: {error}") from error
    yield from records
