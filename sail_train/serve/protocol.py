"""The JSON of OpenAI's chat completions: whole, in chunks, and errors. Shapes alone, no behaviour.

`reasoning_content` beside `content` is what vLLM, SGLang and DeepSeek call a thought.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DONE = b"data: [DONE]\n\n"


class RequestError(ValueError):
    """What is answered with an error; it names the field where there is one."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def content(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Gone(Exception):
    """The reader of an answer has left."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What every chunk and the whole completion begin with."""

    id: str
    created: int
    """Seconds since the epoch."""
    model: str

    def content(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def completion(head: Head, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any]) -> dict[str, Any]:
    return {**head.content("chat.completion"), "choices": list(choices), "usage": usage}


def choice(index: int, *, thought: str, answer: str, finish_reason: str) -> dict[str, Any]:
    """A whole message."""
    message = {"role": "assistant", "content": answer, "reasoning_content": thought or None, "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason}


def chunk(head: Head, index: int, delta: Mapping[str, str], *, finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {**head.content("chat.completion.chunk"), "choices": [choice]}


def last_chunk(head: Head, usage: Mapping[str, Any]) -> dict[str, Any]:
    """What `stream_options.include_usage` asks for: no choice, all counts."""
    return {**head.content("chat.completion.chunk"), "choices": [], "usage": usage}


def usage(*, prompt: int, completion: int, thought: int) -> dict[str, Any]:
    """Counts of tokens; the thought's are part of the completion's."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def event(content: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"
