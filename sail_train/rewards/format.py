r"""The grammar of a response: `<think>\n{thought}\n</think>\n\n{answer with one \boxed{}}` and the end token.

`split_thought` and `extract_boxed` read leniently, so that a right answer in the wrong form is still seen;
`format_ok` is the strict check that the format part of the reward pays for. A prefix that was forced into the prompt
belongs to the text that is given here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sail_train.types import Score

OPEN, CLOSE = "<think>", "</think>"

THINK_FORMS = {"think": True, "on": True, "direct": False, "off": False, "auto": None, None: None}
"""Whether a mode (of a sample or of a prompt) asks for a thought; None leaves it to the model."""

BOXED = re.compile(r"\\boxed\s*\{")


@dataclass(frozen=True, kw_only=True)
class FinalAnswer:
    """What a response finally says."""

    text: str
    """Content of the only box after the thought, or all of the text after the thought where there is no box."""
    boxed: bool = False
    problem: str = ""
    """Why there is nothing to compare: several boxes, or a thought that never ends."""


def split_thought(text: str) -> tuple[str | None, str]:
    """(thought, answer), both stripped; the thought is None without tags, the answer "" if the thought never ends."""
    if CLOSE in text:
        thought, _, answer = text.rpartition(CLOSE)
        return thought.strip().removeprefix(OPEN).strip(), answer.strip()
    if OPEN in text:
        return text.partition(OPEN)[2].strip(), ""
    return None, text.strip()


def boxes(text: str) -> list[str | None]:
    """The content of each box in `text`, in order; None for a box whose braces do not balance."""
    return [_balanced(text, match.end()) for match in BOXED.finditer(text)]


def extract_boxed(text: str) -> str | None:
    """The content of the last box, or None without a box or with unbalanced braces."""
    found = boxes(text)
    return found[-1] if found else None


def final_answer(response: str) -> FinalAnswer:
    """What is compared with the truth. Never looks into the thought; several boxes are a guess, not an answer."""
    thought, answer = split_thought(response)
    if thought is not None and CLOSE not in response:
        return FinalAnswer(text="", problem="the thought never ends")
    found = boxes(answer)
    if len(found) > 1:
        return FinalAnswer(text="", problem=f"{len(found)} boxes")
    if not found:
        return FinalAnswer(text=answer, problem="" if answer else "no answer")
    content = found[0]
    if content is None or not content.strip():
        return FinalAnswer(text="", problem="the box is empty or not closed")
    return FinalAnswer(text=content.strip(), boxed=True)


def format_ok(text: str, finish_reason: str, mode: str | None, *, block: bool = True) -> Score:
    """1 if `text` keeps the grammar of `mode` ("think"/"on", "direct"/"off", "auto" or None), else 0 and why.

    `block`: whether a direct answer too opens with a block, as the chat style has it; else it may go without.
    """
    if not block and OPEN not in text and CLOSE not in text:
        text = f"{OPEN}{CLOSE}{text}"
    problem = _format_problem(text, finish_reason, THINK_FORMS[mode])
    return Score(value=0.0 if problem else 1.0, detail=problem)


def _format_problem(text: str, finish_reason: str, wants_thought: bool | None) -> str:
    if finish_reason != "stop":
        return "no end token"
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return "needs exactly one <think> and one </think>"
    before, _, rest = text.partition(OPEN)
    if before.strip():
        return "text before <think>"
    thought, closed, answer = rest.partition(CLOSE)
    if not closed:
        return "</think> before <think>"
    if wants_thought is not None and bool(thought.strip()) != wants_thought:
        return "the thought is empty" if wants_thought else "a thought where none was asked for"
    found = boxes(answer)
    if wants_thought is False and not found:  # a direct answer may go without a box
        return "" if answer.strip() else "no answer after </think>"
    if len(found) != 1:
        return f"{len(found)} boxes after </think> instead of one"
    if found[0] is None or not found[0].strip():
        return "the box is empty or not closed"
    return ""


def _balanced(text: str, start: int) -> str | None:
    r"""What stands from `start` up to the brace that closes it; `\{` and `\}` do not count."""
    depth, position = 1, start
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
        position += 1
    return None
