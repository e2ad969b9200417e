"""Preference pairs: a question, a better and a worse answer.

{"image": "a.jpg", "question": "<image>\\nWhat is it?", "chosen": "A cat.", "rejected": "A dog."}
{"images": [...], "prompt": [{"role": "user", "content": ...}], "chosen": [{"role": "assistant", ...}], "rejected": ...}

The better answer becomes the sample's last message, so that it can be tuned on as it is; the pair stands in its .json
under meta.preference = {"chosen": ..., "rejected": ...}, where a reward model's training finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail_train.data.tools import messages, problem
from sail_train.data.tools.imported import Imported, plain
from sail_train.types import BadSample


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of these."""
    return "chosen" in record and "rejected" in record


def read(record: Mapping[str, Any]) -> Imported:
    """Raises BadSample where the record does not make sense."""
    chosen, rejected = _answer(record, "chosen"), _answer(record, "rejected")
    if chosen.strip() == rejected.strip():
        raise BadSample("no_preference", "chosen and rejected are the same")
    asked = _asked(record)
    return Imported(
        messages=(*asked.messages, plain("assistant", chosen)),
        images=asked.images,
        videos=asked.videos,
        rejected=rejected,
    )


def _asked(record: Mapping[str, Any]) -> Imported:
    if isinstance(record.get("prompt"), list):
        return messages.read({**record, "messages": record["prompt"]})
    named = {**record, "question": record["prompt"]} if "prompt" in record else record
    question, images, videos = problem.asked(named)
    return Imported(messages=(question,), images=images, videos=videos)


def _answer(record: Mapping[str, Any], name: str) -> str:
    """An answer's text: a string, or the last message of a list."""
    value = record.get(name)
    if isinstance(value, list) and value:
        value = messages.plain_text(value[-1])
    if not isinstance(value, str) or not value.strip():
        raise BadSample("bad_messages", f"{name!r} is {value!r:.60}, not a text")
    return value
