"""LLaVA's records.

{"id": "7", "image": "coco/7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                     {"from": "gpt", "value": "A cat."}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail_train.data.tools.answers import check_turn, thought_of
from sail_train.data.tools.imported import Imported, marks, media_refs, role, split_marks
from sail_train.types import BadSample, Message


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of these."""
    return "conversations" in record and "system" not in record and "tools" not in record


def read(record: Mapping[str, Any]) -> Imported:
    """Raises BadSample where the record does not make sense."""
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise BadSample("bad_messages", "'conversations' must be a list of at least one turn")
    spoken = [_turn(turn) for turn in turns]
    images, videos = media_refs(record, "image"), media_refs(record, "video")
    kinds = marks([value for _, value in spoken], videos, images)
    messages = tuple(
        Message(role=name, content=thought_of(turn, split_marks(value, kinds)))
        for turn, (name, value) in zip(turns, spoken, strict=True)
    )
    return Imported(messages=messages, images=images, videos=videos)


def _turn(turn: Any) -> tuple[str, str]:
    """(role, text)."""
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
        raise BadSample("bad_messages", f"turn {turn!r:.80} has no text under 'value'")
    speaker = role(turn.get("from"))
    check_turn(turn, speaker)
    return speaker, turn["value"]
