"""A request's body -> a question: what is said, how to sample, what was asked for that is not to be had.

The body comes from a stranger. Images stand in it as data: URLs; nothing is fetched (a server that fetches what it is
told to reaches what the asker cannot) and no path is ever read from it. Every refusal names the field.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sail_train.config import suggestion
from sail_train.serve.messages import read_messages
from sail_train.serve.protocol import RequestError
from sail_train.types import THINK_MODES, Conversation, Sampling

KNOWN = {
    "messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "n", "seed", "stop", "think", "chat_template_kwargs",
}  # fmt: skip

IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
"""Of no consequence for an answer."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Not offered; taken where the value asks for nothing, as clients like to send."""

MAX_STOPS = 4
MAX_STOP_LENGTH = 256
MAX_TEMPERATURE = 2.0
GREEDY_BELOW = 1e-3
"""A temperature below this is 0: logits divided by less overflow."""
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    max_tokens: int = 2048
    """Tokens of one completion, thought included, at most; the default of a request, too."""
    max_completions: int = 8
    """`n` at most."""
    max_images: int = 16
    """Of all messages together."""
    max_body: int = 32 * 2**20
    """Bytes of a body."""
    max_messages: int = 512


@dataclass(frozen=True, kw_only=True)
class Question:
    """A checked request."""

    conversation: Conversation
    model: str | None
    think: str
    max_tokens: int | None
    """None: as many as the server and the model allow."""
    temperature: float
    top_p: float
    n: int
    seed: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool

    def sampling(self, max_new_tokens: int) -> Sampling:
        return Sampling(
            max_new_tokens=max_new_tokens, temperature=self.temperature, top_p=self.top_p, n=self.n, seed=self.seed
        )


def parse(data: bytes) -> dict[str, Any]:
    """The JSON object in a body; RequestError if there is none."""
    try:
        body = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is no JSON: {reason}") from None
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object")
    return {name: value for name, value in body.items() if value is not None}


def read_question(body: Mapping[str, Any], limits: Limits) -> Question:
    """The question in a body without nulls. RequestError names the first field that cannot be served."""
    for name, value in body.items():
        _check_name(name, value)
    if "messages" not in body:
        raise RequestError("messages is missing", param="messages")
    temperature = _number(body, "temperature", 1.0, most=MAX_TEMPERATURE)
    top_p = _number(body, "top_p", 1.0, most=1.0)
    if top_p == 0:
        raise RequestError("top_p=0 must be above 0; temperature=0 is greedy", param="top_p")
    return Question(
        conversation=read_messages(body["messages"], max_images=limits.max_images, max_messages=limits.max_messages),
        model=_text(body, "model"),
        think=_think(body),
        max_tokens=_max_tokens(body, limits),
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=top_p,
        n=_integer(body, "n", least=1, most=limits.max_completions) or 1,
        seed=_seed(body),
        stop=_stop(body),
        stream=_flag(body, "stream"),
        include_usage=_include_usage(body),
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _check_name(name: str, value: Any) -> None:
    if name in KNOWN or name in IGNORED:
        return
    if name not in NEUTRAL:
        hint = suggestion(name, KNOWN | NEUTRAL.keys())
        raise RequestError(
            f"{name[:64]!r} is no field of a request here; {hint}", param=name[:64], code="unknown_field"
        )
    if value not in NEUTRAL[name]:
        taken = " or ".join(json.dumps(neutral) for neutral in NEUTRAL[name])
        raise RequestError(f"{name} is not offered; leave it out (taken: {taken})", param=name, code="unsupported")


def _number(body: Mapping[str, Any], name: str, default: float, *, most: float) -> float:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise RequestError(f"{name}={_shown(value)} must be a number from 0 to {most:g}", param=name)
    return float(value)


def _integer(body: Mapping[str, Any], name: str, *, least: int, most: int) -> int | None:
    if name not in body:
        return None
    value = body[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RequestError(f"{name}={_shown(value)} must be a whole number from {least} to {most}", param=name)
    return value


def _flag(body: Mapping[str, Any], name: str, *, param: str = "") -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"{param or name}={_shown(value)} must be true or false", param=param or name)
    return value


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{name}={_shown(value)} must be a text", param=name)
    return value


def _max_tokens(body: Mapping[str, Any], limits: Limits) -> int | None:
    """`max_completion_tokens` is OpenAI's newer name of `max_tokens`."""
    asked = {
        name: value
        for name in ("max_tokens", "max_completion_tokens")
        if (value := _integer(body, name, least=1, most=limits.max_tokens)) is not None
    }
    if len(set(asked.values())) > 1:
        raise RequestError("max_tokens and max_completion_tokens differ; give one", param="max_completion_tokens")
    return next(iter(asked.values()), None)


def _seed(body: Mapping[str, Any]) -> int:
    """Without one, another every time."""
    seed = _integer(body, "seed", least=-MAX_SEED - 1, most=MAX_SEED)
    return secrets.randbits(63) if seed is None else seed


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    value = body.get("stop", [])
    strings = [value] if isinstance(value, str) else value
    right = isinstance(strings, list) and all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_LENGTH for s in strings)
    if not right or len(strings) > MAX_STOPS:
        raise RequestError(
            f"stop must be a text or a list of at most {MAX_STOPS}, each of 1 to {MAX_STOP_LENGTH} characters",
            param="stop",
        )
    return tuple(strings)


def _include_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options", {})
    if not isinstance(options, dict):
        raise RequestError(f"stream_options={_shown(options)} must be an object", param="stream_options")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise RequestError(f"stream_options.{name[:64]} is not offered", param="stream_options")
    return _flag(options, "include_usage", param="stream_options.include_usage")


def _think(body: Mapping[str, Any]) -> str:
    """From `think`, or from `chat_template_kwargs` ("think", or Qwen3's "enable_thinking")."""
    extra = body.get("chat_template_kwargs", {})
    if not isinstance(extra, dict):
        raise RequestError(f"chat_template_kwargs={_shown(extra)} must be an object", param="chat_template_kwargs")
    asked = [("think", body["think"])] if "think" in body else []
    for name, value in extra.items():
        param = f"chat_template_kwargs.{name[:64]}"
        if name == "enable_thinking":
            value = "on" if _flag(extra, name, param=param) else "off"
        elif name != "think":
            raise RequestError(f"{param} is no variable of this template; think and enable_thinking are", param=param)
        asked.append((param, value))
    for param, value in asked:
        if value not in THINK_MODES:
            raise RequestError(f"{param}={_shown(value)} must be one of {', '.join(THINK_MODES)}", param=param)
        if value != asked[0][1]:
            raise RequestError(f"{param}={value} contradicts {asked[0][0]}={asked[0][1]}", param=param)
    return asked[0][1] if asked else "auto"


def _shown(value: Any) -> str:
    """A short form of a value for a message."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
