"""One answer against its ground truth: the record that goes to samples.jsonl and from which every figure is made."""

from __future__ import annotations

from typing import Any

from sail_train.eval.config import Mode
from sail_train.rewards.format import CLOSE, OPEN, boxes, format_ok, split_thought
from sail_train.rewards.verifiers import Request, partial
from sail_train.types import Completion, Conversation, Part, Score

MARKS = {"image": "<image>", "video": "<video>"}
"""Stand for images and videos where a prompt is written down as plain text."""


def prompt_text(conversation: Conversation) -> str:
    """The prompt for a reader: messages with their roles where there are several, images as a mark."""
    messages = [(message.role, "".join(map(_part_text, message.content))) for message in conversation.prompt]
    if len(messages) == 1:
        return messages[0][1]
    return "\n\n".join(f"{role}: {text}" for role, text in messages)


def _part_text(part: Part) -> str:
    return MARKS.get(part.type, part.text)


def request(conversation: Conversation, text: str) -> Request:
    """What the sample's own verifier is asked."""
    assert conversation.verifier is not None and conversation.answer is not None
    return Request(name=conversation.verifier, answer=conversation.answer, response=text)


def figures(
    conversation: Conversation,
    question: Request,
    score: Score,
    completion: Completion,
    mode: Mode,
    *,
    block: bool = True,
) -> dict[str, Any]:
    """What is known of one answer; `score` is None where the verifier failed, others where they do not apply.

    `block`: whether the chat style opens every answer with a thought block.
    """
    text = question.response
    thought, _ = split_thought(text)
    return {
        "gold": question.answer,
        "verifier": question.name,
        "score": None if score.failed else score.value,
        "status": score.status,
        "detail": score.detail,
        "finish_reason": completion.finish_reason,
        "tokens": len(completion.token_ids),
        "truncated": float(completion.finish_reason == "length"),
        "thinks": float(bool(thought)),
        "followed": followed(text, thought, mode),
        "format": (
            # Under auto the grammar alone counts: whether to think was left to the model.
            format_ok(text, completion.finish_reason, mode.think, block=block).value
            if wants_box(conversation, mode)
            else None
        ),
        "digits": partial(question.name, question.answer, text),
    }


def wants_box(conversation: Conversation, mode: Mode) -> bool:
    """Whether the grammar with a boxed answer is due: with a thought, or where the reference answer is boxed too."""
    references = [message.text for message in conversation.messages if message.role == "assistant"]
    return mode.think == "on" or not references or bool(boxes(references[-1]))


def followed(text: str, thought: str | None, mode: Mode) -> float | None:
    """1 if the answer did what the flag asked: on, a closed thought; off, none or an empty one. None for auto."""
    if mode.think == "auto":
        return None
    if mode.think == "on":
        return float(bool(thought) and CLOSE in text)
    return float(not thought and text.count(OPEN) == text.count(CLOSE))
