"""A question, and the answer that it is graded by or a worked solution: what RL asks, or single-turn tuning.

{"images": [...], "problem": "<image>Find x.", "answer": "17"}          graded: no answer to imitate
{"image": "a.jpg", "question": "<image>Find x.", "answer": "17", "solution": "<think>...</think>\\n\\nx = 17"}

Without a solution the sample has a question alone, its answer and the verifier that compares with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sail_train.data.tools.imported import Imported, marks, media_refs, plain, said, split_marks
from sail_train.types import BadSample, Message

NAMES = ("problem", "question")
"""Fields that may hold the question."""


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of these."""
    return any(name in record for name in NAMES) and ("answer" in record or "solution" in record)


def read(record: Mapping[str, Any]) -> Imported:
    """Raises BadSample where the record does not make sense."""
    question, images, videos = asked(record)
    solution: tuple[Message, ...] = ()
    if record.get("solution") is not None:
        solution = (plain("assistant", said(record, "solution", blank="empty_answer")),)
    if not solution and not record.get("verifier"):
        raise BadSample("no_verifier", "an answer to grade by needs a verifier: name it with --verifier")
    if not solution and record.get("answer") is None:
        raise BadSample("bad_messages", "neither an answer nor a solution")
    return Imported(messages=(question, *solution), images=images, videos=videos)


def asked(record: Mapping[str, Any], names: Sequence[str] = NAMES) -> tuple[Message, tuple[Any, ...], tuple[Any, ...]]:
    """The question as a message, its images and its videos; it is the first of the fields `names` that is there."""
    name = next((name for name in names if record.get(name) is not None), names[0])
    content = said(record, name)
    images, videos = media_refs(record, "image"), media_refs(record, "video")
    return Message(role="user", content=split_marks(content, marks([content], videos, images))), images, videos
