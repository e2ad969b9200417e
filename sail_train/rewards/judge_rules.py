"""The rules by which the small judge grades the thoughts of the tiny tasks.

A thought is blocks separated by blank lines or semicolons: first what is seen (the digits of the grid, in reading
order), then the steps. `Case` -> the three verdicts of SAIL-VL2's thinking reward:
grounding    the digits of the first block are those of the reference;
logic        the steps follow from what the thought itself has seen, by the rule of the task (`TASKS`);
consistency  the last number of the thought is the final answer.
The reference is text of lines "name: value": `grid` (rows separated by "/"), `task` (a name in `TASKS`) and what the
task needs: `cells` (numbers of the cells it works on, from 0; without it all), `digit` (what `count` counts).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from sail_train.rewards.format import final_answer

BLOCK = re.compile(r"\n\s*\n|;")
NUMBER = re.compile(r"-?\d+")
EQUATION = re.compile(r"(\d+)\s*([-+*])\s*(\d+)\s*=\s*(-?\d+)")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a judge is given."""

    question: str
    thought: str
    answer: str
    reference: str

    @property
    def blocks(self) -> list[str]:
        return [block for block in BLOCK.split(self.thought) if block.strip()]

    @property
    def facts(self) -> dict[str, str]:
        lines = (line.partition(":") for line in self.reference.splitlines())
        return {name.strip(): value.strip() for name, colon, value in lines if colon}


def judge(case: Case) -> dict[str, int]:
    """The verdicts, 0 or 1 each. A thought of another form, another grid or another question scores low."""
    return {
        "logic": int(logical(case)),
        "grounding": int(grounded(case)),
        "consistency": int(consistent(case)),
    }


def grounded(case: Case) -> bool:
    seen = re.findall(r"\d", case.blocks[0]) if case.blocks else []
    return bool(seen) and seen == re.findall(r"\d", case.facts.get("grid", ""))


def logical(case: Case) -> bool:
    """The steps after the first block are what the task's rule makes of the digits that the first block names."""
    facts, blocks = case.facts, case.blocks
    rule = TASKS.get(facts.get("task", ""))
    if rule is None or len(blocks) < 2:
        return False
    seen = [int(digit) for digit in re.findall(r"\d", blocks[0])]
    cells = [int(number) for number in NUMBER.findall(facts.get("cells", ""))] or list(range(len(seen)))
    if not seen or max(cells) >= len(seen):
        return False
    text = " ; ".join(blocks[1:])
    if not equations_hold(text):
        return False
    return steps(text) == rule([seen[cell] for cell in cells], facts)


def consistent(case: Case) -> bool:
    """The last number of the thought is the only number of the final answer."""
    reached, given = NUMBER.findall(case.thought), NUMBER.findall(final_answer(case.answer).text)
    return len(given) == 1 and bool(reached) and int(reached[-1]) == int(given[0])


def equations_hold(text: str) -> bool:
    """Whether every "a + b = c" of `text` is right; a text without one passes."""
    operations: dict[str, Callable[[int, int], int]] = {
        "+": int.__add__,
        "-": int.__sub__,
        "*": int.__mul__,
    }
    return all(operations[sign](int(a), int(b)) == int(c) for a, sign, b, c in EQUATION.findall(text))


def steps(text: str) -> list[int]:
    """The value each step reaches: the right-hand sides where there are equations, else every number."""
    reached = [int(found[3]) for found in EQUATION.findall(text)]
    return reached or [int(number) for number in NUMBER.findall(text)]


def running_sum(values: Sequence[int], facts: dict[str, str]) -> list[int]:
    return list(accumulate(values))


def running_count(values: Sequence[int], facts: dict[str, str]) -> list[int]:
    return list(accumulate(int(str(value) == facts.get("digit")) for value in values))


def running_max(values: Sequence[int], facts: dict[str, str]) -> list[int]:
    return list(accumulate(values, max))


TASKS: dict[str, Callable[[Sequence[int], dict[str, str]], list[int]]] = {
    "sum": running_sum,
    "count": running_count,
    "max": running_max,
}
"""For each task the values its steps reach, from the digits it works on and the reference's facts."""
