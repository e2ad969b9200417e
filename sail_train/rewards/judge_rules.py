"""The rules by which the small judge grades the thoughts of the tiny tasks.

A thought is two blocks with a semicolon or a blank line between them: the digits that are seen, in reading order,
then the running value after each of them ("351; 03 08 09"). `Case` -> the three verdicts of SAIL-VL2's thinking
reward:
grounding    the digits of the first block are those of the reference;
logic        each step follows, by the rule of the task, from the digits that the thought itself names;
consistency  the last step is the final answer.
The reference is lines "name: value": `task` (a name in `TASKS`), `cells` (the digits in question) and what the
task's rule needs. A new task is one entry of `TASKS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from sail_train.rewards.format import final_answer

BLOCK = re.compile(r"\n\s*\n|;")
NUMBER = re.compile(r"[0-9]+")
DIGIT = re.compile(r"[0-9]")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a judge is given."""

    question: str
    thought: str
    answer: str
    reference: str

    @property
    def blocks(self) -> list[str]:
        return [block.strip() for block in BLOCK.split(self.thought) if block.strip()]

    @property
    def facts(self) -> dict[str, str]:
        lines = (line.partition(":") for line in self.reference.splitlines())
        return {name.strip(): value.strip() for name, colon, value in lines if colon}


@dataclass(frozen=True, kw_only=True)
class Task:
    """How the steps of one kind of thought are read, and what they must be."""

    step: re.Pattern[str]
    """One step as it is written: a digit, or a number."""
    values: Callable[[Sequence[int], dict[str, str]], list[int]]
    """(digits seen, facts of the reference) -> the running value after each digit."""


def running_count(seen: Sequence[int], facts: dict[str, str]) -> list[int]:
    """How many of the digits so far are greater than `bound`."""
    bound = facts.get("bound", "")
    return list(accumulate(int(digit > int(bound)) for digit in seen)) if bound.isdigit() else []


def running_sum(seen: Sequence[int], facts: dict[str, str]) -> list[int]:
    return list(accumulate(seen))


TASKS = {
    "count": Task(step=DIGIT, values=running_count),
    "sum": Task(step=NUMBER, values=running_sum),
}


def judge(case: Case) -> dict[str, int]:
    """The verdicts, 0 or 1 each; a thought of another form, image or question earns few of them."""
    return {
        "logic": int(logical(case)),
        "grounding": int(grounded(case)),
        "consistency": int(consistent(case)),
    }


def grounded(case: Case) -> bool:
    seen = _seen(case)
    return bool(seen) and seen == [int(digit) for digit in DIGIT.findall(case.facts.get("cells", ""))]


def logical(case: Case) -> bool:
    task, seen, steps = TASKS.get(case.facts.get("task", "")), _seen(case), _steps(case)
    return task is not None and bool(seen) and steps == task.values(seen, case.facts)


def consistent(case: Case) -> bool:
    given, steps = NUMBER.findall(final_answer(case.answer).text), _steps(case)
    return len(given) == 1 and bool(steps) and steps[-1] == int(given[0])


def _seen(case: Case) -> list[int]:
    """The digits of the first block, if it holds digits and spaces alone."""
    first = case.blocks[0] if case.blocks else ""
    return [int(digit) for digit in first if digit != " "] if re.fullmatch(r"[0-9 ]+", first) else []


def _steps(case: Case) -> list[int]:
    """The values of the second block, if the thought has just two and this one holds numbers alone."""
    task, blocks = TASKS.get(case.facts.get("task", "")), case.blocks
    if task is None or len(blocks) != 2 or not re.fullmatch(r"[0-9 ]+", blocks[1]):
        return []
    return [int(step) for step in task.step.findall(blocks[1])]
