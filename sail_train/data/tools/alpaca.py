"""Alpaca's records, as LLaMA-Factory has them, and ms-swift's of the same shape.

{"instruction": "What is it?", "input": "", "output": "A cat.", "system": "", "history": [["Hi", "Hello"]]}
{"query": "<image>What is it?", "response": "A cat.", "history": [], "images": ["a.jpg"]}

`input` is the instruction's second paragraph; `history` the earlier turns, question and answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail_train.data.tools.answers import check_tools
from sail_train.data.tools.imported import Imported, marks, media_refs, plain, said, split_marks
from sail_train.types import BadSample, Message

NAMES = {"instruction": "output", "query": "response"}
"""Field of the question -> field of the answer."""


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of these."""
    return any(question in record and answer in record for question, answer in NAMES.items())


def read(record: Mapping[str, Any]) -> Imported:
    """Raises BadSample where the record does not make sense."""
    name = next(answer for question, answer in NAMES.items() if question in record and answer in record)
    found = asked(record)
    answer = plain("assistant", said(record, name, blank="empty_answer"))
    return Imported(messages=(*found.messages, answer), images=found.images, videos=found.videos)


def asked(record: Mapping[str, Any]) -> Imported:
    """All but the answer."""
    check_tools(record)
    question = said(record, next(name for name in NAMES if name in record))
    if record.get("input"):
        question += f"\n{said(record, 'input')}"
    spoken = [*_history(record), ("user", question)]
    images, videos = media_refs(record, "image"), media_refs(record, "video")
    kinds = marks([each for _, each in spoken], videos, images)
    system = (plain("system", said(record, "system")),) if record.get("system") else ()
    messages = (Message(role=role, content=split_marks(each, kinds)) for role, each in spoken)
    return Imported(messages=(*system, *messages), images=images, videos=videos)


def _history(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of the earlier turns."""
    pairs = record.get("history") or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(each, str) for each in pair) for pair in pairs
    ):
        raise BadSample("bad_messages", "'history' must be a list of pairs, each a question and its answer")
    return [(role, each) for pair in pairs for role, each in zip(("user", "assistant"), pair, strict=True)]
