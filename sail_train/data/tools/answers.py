"""What assistants say in foreign records, as a sample can have it.

A sample trains on every answer, has no calls of tools, and a thought is one whole block ahead of its answer: a record
that says anything else is refused by name, for it would be trained on as what it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail_train.data.conversation import text
from sail_train.types import BadSample, Message, Part

THINK, THOUGHT = "<think>", "</think>"
FLAGS = ("loss", "weight", "train")
"""A turn's own word on whether it is trained on: ms-swift's, OpenAI's, axolotl's."""
REASONING = ("reasoning_content", "reasoning")
"""Where a turn keeps its thought apart from its answer."""
CALLS = ("tool_calls", "function_call")


def check_tools(record: Mapping[str, Any]) -> None:
    """BadSample "tools": no model here is trained to call them."""
    for name in ("tools", "functions"):
        if record.get(name):
            raise BadSample("tools", f"{record[name]!r:.60}: conversations with tools are not read")


def check_calls(turn: Mapping[str, Any]) -> None:
    """BadSample "tools" for a turn that calls some."""
    for name in CALLS:
        if turn.get(name):
            raise BadSample("tools", f"{turn[name]!r:.60}: turns that call tools are not read")


def check_turn(turn: Mapping[str, Any], speaker: str) -> None:
    """BadSample "tools", or "loss_flag" where the turn asks for another loss than a sample has."""
    check_calls(turn)
    trained = speaker == "assistant"
    for name in FLAGS:
        flag = turn.get(name)
        if flag is not None and flag != int(trained):
            raise BadSample(
                "loss_flag",
                f"{name}={flag!r:.20} on a turn of the {speaker}: a sample trains on every answer and nothing else; "
                "end the record before that turn, or take the flag out",
            )


def thought_of(turn: Mapping[str, Any], content: tuple[Part, ...]) -> tuple[Part, ...]:
    """The turn's parts, with a thought that it keeps in a field of its own ahead of them."""
    for name in REASONING:
        thought = turn.get(name)
        if thought is not None and not isinstance(thought, str):
            raise BadSample("bad_thought", f"{name}={thought!r:.60} is not a text")
        if thought and thought.strip():
            return (Part(type="text", text=f"{THINK}\n{text(thought).strip()}\n{THOUGHT}\n\n"), *content)
    return content


def settled(message: Message) -> Message:
    """An assistant's message as `settled_text` leaves it; any other as it is. BadSample "assistant_image" too."""
    if message.role != "assistant":
        return message
    if shown := [part.type for part in message.content if part.type != "text"]:
        raise BadSample("assistant_image", f"an assistant's turn holds text alone, not a {shown[0]}")
    return Message(role=message.role, content=(Part(type="text", text=settled_text(message.text)),))


def settled_text(said: str) -> str:
    """An answer with its thought, if it has one, as one block ahead of it; an empty block (Qwen3's) is none.

    Raises:
        BadSample: "bad_thought", "empty_answer".
    """
    opened, thought, answer = said.lstrip().startswith(THINK), "", said
    if opened:
        thought, closed, answer = said.lstrip()[len(THINK) :].partition(THOUGHT)
        if not closed:
            raise BadSample("bad_thought", f"{THINK} is not closed by {THOUGHT}")
    if THINK in thought or THINK in answer or THOUGHT in answer:
        raise BadSample("bad_thought", f"{THINK} or {THOUGHT} apart from one block ahead of the answer")
    if not answer.strip():
        raise BadSample(
            "empty_answer", "nothing is said after the thought" if opened else "an assistant's turn is blank"
        )
    return said if not opened or thought.strip() else answer.lstrip("\r\n")


def mode_of(messages: tuple[Message, ...]) -> str | None:
    """How the last answer opens: with a thought or not; None without an answer."""
    last = messages[-1]
    if last.role != "assistant":
        return None
    return "think" if last.text.lstrip().startswith(THINK) else "direct"


def check_answered(messages: tuple[Message, ...], answer: str | None, verifier: str | None) -> None:
    """BadSample "no_answer": nothing to train on, and nothing to grade by; "empty_answer": a blank to grade by."""
    if any(message.role == "assistant" for message in messages):
        return
    if answer is None or not verifier:
        raise BadSample("no_answer", "no assistant's turn to train on, and no answer and verifier to grade by")
    if not answer.strip():
        raise BadSample("empty_answer", "the answer to grade by is blank")
