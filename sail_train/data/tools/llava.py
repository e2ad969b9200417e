"""LLaVA's records.

{"id": "7", "image": "coco/7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                     {"from": "gpt", "value": "A cat."}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail_train.data.tools.imported import Imported, check_count, image_refs, role, split_placeholders
from sail_train.types import BadSample, Message


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of these."""
    return "conversations" in record


def read(record: Mapping[str, Any]) -> Imported:
    """Raises BadSample where the record does not make sense."""
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise BadSample("bad_messages", "'conversations' must be a list of at least one turn")
    messages = tuple(_message(turn) for turn in turns)
    images = image_refs(record)
    check_count(messages, images)
    return Imported(messages=messages, images=images)


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
        raise BadSample("bad_messages", f"turn {turn!r:.80} has no text under 'value'")
    return Message(role=role(turn.get("from")), content=split_placeholders(turn["value"]))
