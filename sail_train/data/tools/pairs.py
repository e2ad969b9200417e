"""The Cauldron's records: images, and several questions about them, each with its answer.

{"images": [...], "texts": [{"user": "What is it?", "assistant": "A cat.", "source": "VQAv2"}, ...]}

No text marks where an image stands: all of them come first. The pairs become the turns of one conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail_train.data.tools.imported import Imported, media_refs, plain, said
from sail_train.types import BadSample, Message, Part


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of these."""
    return "texts" in record


def read(record: Mapping[str, Any]) -> Imported:
    """Raises BadSample where the record does not make sense."""
    pairs = record.get("texts")
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, Mapping) for pair in pairs):
        raise BadSample("bad_messages", "'texts' must be a list of at least one question and answer")
    images = media_refs(record, "image")
    first = tuple(Part(type="image") for _ in images)
    turns: list[Message] = []
    for pair in pairs:
        answer = said(pair, "assistant", where="pair", blank="empty_answer")
        turns += [plain("user", said(pair, "user", where="pair")), plain("assistant", answer)]
    turns[0] = Message(role="user", content=first + turns[0].content)
    return Imported(messages=tuple(turns), images=images)
