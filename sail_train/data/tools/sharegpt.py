"""ShareGPT's records, as LLaMA-Factory writes them: LLaVA's turns, a system text beside them, lists of files.

{"conversations": [{"from": "human", "value": "<image><video>Is it in the film?"}, {"from": "gpt", "value": "Yes."}],
 "system": "You are careful.", "images": ["a.jpg"], "videos": ["b.mp4"]}

Calls of tools are refused: no model here is trained to make them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail_train.data.tools import llava
from sail_train.data.tools.answers import check_tools
from sail_train.data.tools.imported import Imported, plain, said
from sail_train.types import BadSample


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is one of these."""
    return "conversations" in record


def read(record: Mapping[str, Any]) -> Imported:
    """Raises BadSample where the record does not make sense."""
    check_tools(record)
    found = llava.read(record)
    if not record.get("system"):
        return found
    if found.messages[0].role == "system":
        raise BadSample("bad_messages", "'system' is given beside a system turn")
    messages = (plain("system", said(record, "system")), *found.messages)
    return Imported(messages=messages, images=found.images, videos=found.videos)
