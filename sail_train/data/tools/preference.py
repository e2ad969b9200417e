"""Preference pairs: a question, a better and a worse answer.

RLAIF-V         {"image": "a.jpg", "question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}
TRL             {"images": [...], "prompt": [{"role": "user", ...}], "chosen": [{"role": ...}], "rejected": [...]}
LLaMA-Factory   {"conversations": [...], "chosen": {"from": "gpt", "value": "A cat."}, "rejected": {...}}
ms-swift        {"messages": [..., {"role": "assistant", "content": "A cat."}], "rejected_response": "A dog."}

The better answer becomes the sample's last message, so that it can be tuned on as it is; the pair stands in its .json
under meta.preference = {"chosen": ..., "rejected": ...}, where a reward model's training finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail_train.data.tools import alpaca, messages, problem, sharegpt
from sail_train.data.tools.answers import check_turn, settled_text
from sail_train.data.tools.imported import Imported, plain
from sail_train.types import BadSample

WORSE = ("rejected_response", "rejected_messages")
"""ms-swift's fields of the worse answer; the better one ends the conversation beside it."""


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of these."""
    return ("chosen" in record and "rejected" in record) or _worse(record) is not None


def _worse(record: Mapping[str, Any]) -> str | None:
    """The field of ms-swift's that holds something: a column of nulls is no pair."""
    return next((name for name in WORSE if name in record and record[name] not in (None, "", [])), None)


def read(record: Mapping[str, Any]) -> Imported:
    """Raises BadSample where the record does not make sense."""
    if (name := _worse(record)) is not None:
        whole = messages.read(record) if "messages" in record else alpaca.read(record)
        if whole.messages[-1].role != "assistant":
            raise BadSample("bad_messages", f"no answer ends the conversation that {name!r} is the worse end of")
        before, chosen, worse = whole.messages[:-1], whole.messages[-1].text, _answer(record, name)
        asked = Imported(messages=before, images=whole.images, videos=whole.videos)
    else:
        chosen, worse = _answer(record, "chosen"), _answer(record, "rejected")
        asked = _asked(record)
    if settled_text(chosen).strip() == settled_text(worse).strip():
        raise BadSample("no_preference", "chosen and rejected are the same")
    answered = (*asked.messages, plain("assistant", chosen))
    return Imported(messages=answered, images=asked.images, videos=asked.videos, rejected=worse)


def _asked(record: Mapping[str, Any]) -> Imported:
    if isinstance(record.get("prompt"), list):
        return messages.read(record, "prompt")
    if "messages" in record:
        return messages.read(record)
    if "conversations" in record:
        return sharegpt.read(record)
    if any(name in record for name in alpaca.NAMES) and not any(name in record for name in problem.NAMES):
        return alpaca.asked(record)
    question, images, videos = problem.asked(record, ("prompt", *problem.NAMES))
    return Imported(messages=(question,), images=images, videos=videos)


def _answer(record: Mapping[str, Any], name: str) -> str:
    """An answer's text: a string, a turn, or the last message of a list."""
    value = record.get(name)
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1]
    if isinstance(value, Mapping):
        check_turn(value, "assistant")
        value = value["value"] if "value" in value else messages.plain_text(value)
    if isinstance(value, str) and not value.strip():
        raise BadSample("empty_answer", f"{name!r} is blank")
    if not isinstance(value, str):
        raise BadSample("bad_messages", f"{name!r} is {value!r:.60}, not a text")
    return value
