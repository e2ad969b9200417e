"""Messages -> pieces of text, control tokens and images, in Qwen3's ChatML, each trained on or not.

    <|im_start|>user\\n<img>..</img>question /think<|im_end|>\\n
    <|im_start|>assistant\\n<think>\\nthought\\n</think>\\n\\nanswer<|im_end|>\\n

An assistant's turn always opens with a thought block, empty where it did not think: how to open is learnt.
Trained on is each assistant's turn from its block to its <|im_end|>; not the turn whose thought was dropped,
because a user's turn follows it: it would teach to answer at once where the data thought.
`chat_template` is the same in Jinja, for tools that know transformers alone; a test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sail_train.processor.tokenizer import THINK_END, THINK_START, TURN_END, TURN_START
from sail_train.types import THINK_MODES, BadSample, Message

IMAGE_PLACEHOLDER = "<image>"
"""Stands for one image in rendered text; `SailVLProcessor.__call__` expands it."""

FLAGS = {"on": " /think", "off": " /no_think", "auto": ""}
"""Appended to the last user message: asks for a thought, or for none."""
PREFIXES = {"on": f"{THINK_START}\n", "off": f"{THINK_START}\n\n{THINK_END}\n\n", "auto": ""}
"""Forces what the flag asks for: the answer begins behind it."""
MODE_THINK = {"think": "on", "direct": "off", None: "auto"}
"""`Conversation.mode` -> the flag that fits it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What becomes consecutive tokens: a text, one control token, or the next image."""

    kind: str
    """"text", "control" or "image"."""
    text: str = ""
    trained: bool = False


def render(messages: Sequence[Message], *, system: str | None = None, think: str = "auto") -> list[Piece]:
    """Pieces of a conversation, each turn closed; BadSample for a role or content that the template lacks."""
    if system is not None and (not messages or messages[0].role != "system"):
        pieces = _turn("system", [Piece("text", system)])
    else:
        pieces = []
    last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    for i, message in enumerate(messages):
        if message.role == "assistant":
            pieces += _assistant_turn(message, history=i < last_user)
        elif message.role in ("system", "user"):
            body = [Piece(part.type, part.text) for part in message.content]
            if i == last_user and FLAGS[think]:
                body.append(Piece("text", FLAGS[think]))
            pieces += _turn(message.role, body)
        else:
            raise BadSample("bad_role", f"{message.role!r} is none of system, user, assistant")
    return pieces


def generation_prompt(think: str, *, force: bool) -> list[Piece]:
    """What follows the last turn for the model to go on: the assistant's header and, if forced, its opening."""
    pieces = [Piece("control", TURN_START), Piece("text", "assistant\n")]
    if force and PREFIXES[think]:
        pieces.append(Piece("text", PREFIXES[think]))
    return pieces


def check_think(think: str) -> None:
    if think not in THINK_MODES:
        raise ValueError(f"think={think!r} must be one of {', '.join(THINK_MODES)}")


def split_thought(text: str) -> tuple[str, str]:
    """(thought, answer) of an assistant's text, both stripped; BadSample if its thought does not end."""
    text = text.strip()
    if not text.startswith(THINK_START):
        return "", text
    thought, end, answer = text.removeprefix(THINK_START).partition(THINK_END)
    if not end:
        raise BadSample("open_thought", f"{THINK_START} without {THINK_END}")
    return thought.strip(), answer.strip()


def _turn(role: str, body: list[Piece]) -> list[Piece]:
    return [
        Piece("control", TURN_START),
        Piece("text", f"{role}\n"),
        *body,
        Piece("control", TURN_END),
        Piece("text", "\n"),
    ]


def _assistant_turn(message: Message, *, history: bool) -> list[Piece]:
    if any(part.type != "text" for part in message.content):
        raise BadSample("assistant_image", "an assistant's turn holds text alone")
    thought, answer = split_thought(message.text)
    dropped = history and bool(thought)
    body = f"{THINK_START}\n{'' if dropped else thought}\n{THINK_END}\n\n{answer}"
    return [
        Piece("control", TURN_START),
        Piece("text", "assistant\n"),
        Piece("text", body, trained=not dropped),
        Piece("control", TURN_END, trained=not dropped),
        Piece("text", "\n"),
    ]


def chat_template(system: str | None) -> str:
    """The Jinja template; `think` ("on", "off", "auto") and `force` are its variables beside the usual ones."""
    return _JINJA.replace("SYSTEM", "none" if system is None else json.dumps(system))


_JINJA = """\
{%- set think = think | default("auto") -%}
{%- set system = SYSTEM -%}
{%- set ns = namespace(last_user=-1) -%}
{%- for message in messages -%}
  {%- if message.role == "user" -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- macro parts(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == "image" -%}{{- "<image>" -}}{%- else -%}{{- part.text -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- if system is not none and (not messages or messages[0].role != "system") -%}
  {{- "<|im_start|>system\\n" + system + "<|im_end|>\\n" -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set text = parts(message.content) -%}
  {%- if message.role == "assistant" -%}
    {%- set text = text | trim -%}
    {%- set thought = "" -%}
    {%- if text.startswith("<think>") and "</think>" in text -%}
      {%- set thought = text[7:].split("</think>", 1)[0] | trim -%}
      {%- set text = text[7:].split("</think>", 1)[1] | trim -%}
    {%- endif -%}
    {%- if loop.index0 < ns.last_user -%}{%- set thought = "" -%}{%- endif -%}
    {{- "<|im_start|>assistant\\n<think>\\n" + thought + "\\n</think>\\n\\n" + text + "<|im_end|>\\n" -}}
  {%- else -%}
    {{- "<|im_start|>" + message.role + "\\n" + text -}}
    {%- if loop.index0 == ns.last_user and think == "on" -%}{{- " /think" -}}{%- endif -%}
    {%- if loop.index0 == ns.last_user and think == "off" -%}{{- " /no_think" -}}{%- endif -%}
    {{- "<|im_end|>\\n" -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- "<|im_start|>assistant\\n" -}}
  {%- if force is defined and force and think == "on" -%}{{- "<think>\\n" -}}{%- endif -%}
  {%- if force is defined and force and think == "off" -%}{{- "<think>\\n\\n</think>\\n\\n" -}}{%- endif -%}
{%- endif -%}
"""
