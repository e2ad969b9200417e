"""Real answers: one picture followed through the stages, and cards of right and wrong ones with thought and gold."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from typing import Any

from sail_train.report.finding import find_images
from sail_train.report.names import READ_FIRST
from sail_train.report.picking import FOLLOWED, Picked, data_uri, image_uris, is_right, pick_run
from sail_train.report.reading import Recipe, Run, is_number, mapping
from sail_train.rewards.format import split_thought

CARDS = 3
"""Right and wrong answers shown of each suite of a run, each so many at most."""

STORIES = 4
"""Pictures followed through the stages."""

GROUPS = 1
"""Groups of rollouts shown of an RL run."""

ONLY_BOX = re.compile(r"\\boxed\s*\{([^{}]*)\}")

MAX_TEXT = 4000
"""Characters shown of a text."""


def build(recipe: Recipe) -> dict[str, Any] | None:
    picked = {run.name: pick_run(run) for run in recipe.runs}
    cards = [card for run in recipe.runs for card in cards_of(run, picked[run.name])]
    groups = [group for run in recipe.runs for group in groups_of(run, picked[run.name])]
    if not cards and not groups:
        return None
    return {
        "stories": stories(recipe, picked),
        "cards": cards,
        "groups": groups,
        "runs": list(dict.fromkeys(card["run"] for card in cards)),
        "suites": list(dict.fromkeys(card["suite"] for card in cards)),
        "answers": sum(one.answers for one in picked.values()),
        "rollouts": sum(one.rollouts_by_source.total() for one in picked.values()),
    }


def cards_of(run: Run, picked: Picked) -> list[dict[str, Any]]:
    """Wrong and right answers in turn, of every suite in the first of its modes that shows most."""
    cards = []
    for suite in dict.fromkeys(suite for suite, _ in [*picked.wrong, *picked.right]):
        for mode in modes_shown(suite, picked):
            for kept in (picked.right, picked.wrong):
                cards += [card(run, record) for record in kept.get((suite, mode), [])[:CARDS]]
    return cards


def modes_shown(suite: str, picked: Picked) -> list[str]:
    """Asked with both flags: those two; else the most telling mode alone."""
    modes = sorted({mode for one, mode in [*picked.right, *picked.wrong] if one == suite and mode in READ_FIRST},
                   key=READ_FIRST.index)  # fmt: skip
    return ["on", "off"] if {"on", "off"} <= set(modes) else modes[:1]


def card(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """What a card says; all of it is escaped by the template."""
    response = str(record.get("response", ""))
    thought, answer = split_thought(response)
    return {
        "run": run.name,
        "suite": str(record.get("suite", "")),
        "mode": str(record.get("mode", "")),
        "key": str(record.get("key", "")),
        "prompt": clipped(str(record.get("prompt", "")).replace("<image>", "").strip()),
        "thought": clipped(thought or ""),
        **answered(answer, str(record.get("gold", ""))),
        "gold": clipped(str(record.get("gold", ""))),
        "right": is_right(record),
        "score": record.get("score"),
        "status": str(record.get("status", "ok")),
        "detail": clipped(str(record.get("detail", ""))),
        "truncated": bool(record.get("truncated")),
        "tokens": record.get("tokens"),
        "images": image_uris(run.path, record),
    }


def answered(answer: str, gold: str) -> dict[str, Any]:
    """The answer without its box where that is all it says (the page draws the box), and in pieces that mark errors."""
    match = ONLY_BOX.fullmatch(answer)
    text = clipped(match[1] if match else answer) or "(nothing)"
    return {"answer": text, "boxed": match is not None, "pieces": pieces(text, gold)}


def pieces(answer: str, gold: str) -> list[tuple[str, bool]]:
    """(text, whether it is as in `gold`): character by character where both are as long, else the whole as it is."""
    if len(answer) != len(gold):
        return [(answer, True)]
    alike = groupby(zip(answer, gold, strict=True), key=lambda pair: pair[0] == pair[1])
    return [("".join(char for char, _ in pairs), same) for same, pairs in alike]


def clipped(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …"


def stories(recipe: Recipe, picked: dict[str, Picked]) -> list[dict[str, Any]]:
    """Pictures whose answers changed most on the way, each with what every stage said about it."""
    told = []
    for suite in dict.fromkeys(key[0] for one in picked.values() for key in one.followed):
        found = [story(recipe, picked, suite, index) for index in range(FOLLOWED)]
        kept = [one for one in found if one is not None and len(one["answers"]) > 1]
        told += sorted(kept, key=lambda one: -one["drama"])[:2]
    return sorted(told, key=lambda one: -one["drama"])[:STORIES]


def story(recipe: Recipe, picked: dict[str, Picked], suite: str, index: int) -> dict[str, Any] | None:
    """One prompt through the stages; None if no stage kept its picture."""
    answers = []
    for run in recipe.runs:
        found = picked[run.name].followed
        mode = next((mode for mode in READ_FIRST if (suite, mode, index) in found), None)
        if mode is not None:
            answers.append(card(run, found[suite, mode, index]))
    shown = [answer for answer in answers if answer["images"]]
    if not shown:
        return None
    verdicts = [answer["right"] for answer in answers]
    turns = sum(a != b for a, b in zip(verdicts, verdicts[1:], strict=False))
    drama = len({answer["answer"] for answer in answers}) + 3.0 * (verdicts[-1] and not verdicts[0]) - 0.5 * turns
    same = {answer["gold"] for answer in answers}
    if len(same) > 1:
        return None
    return {**{name: shown[0][name] for name in ("suite", "prompt", "gold", "images")}, "answers": answers,
            "drama": drama}  # fmt: skip


def groups_of(run: Run, picked: Picked) -> list[dict[str, Any]]:
    """The last groups of rollouts in which answers differed: the same prompt, several tries, their rewards."""
    groups: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for record in picked.rollouts:
        groups.setdefault((record.get("rollout_batch"), record.get("uid")), []).append(record)
    best = sorted(groups.values(), key=balance)[-GROUPS:]
    return [rollout_group(run, group) for group in best if balance(group) > 0]


def balance(group: list[dict[str, Any]]) -> int:
    """How evenly a group's rewards lie above and below their middle: 0 where all are alike."""
    rewards = [reward_of(record) for record in group]
    middle = (min(rewards) + max(rewards)) / 2
    above = sum(reward > middle for reward in rewards)
    return min(above, len(rewards) - above)


def rollout_group(run: Run, group: list[dict[str, Any]]) -> dict[str, Any]:
    first = group[0]
    tries = []
    counts = Counter(str(record.get("response", "")) for record in group)
    once = {str(record.get("response", "")): record for record in group}
    for record in sorted(once.values(), key=lambda record: -reward_of(record)):
        thought, answer = split_thought(str(record.get("response", "")))
        tries.append(
            {
                "thought": clipped(thought or ""),
                **answered(answer, str(record.get("truth", ""))),
                "reward": record.get("reward"),
                "share": max(0.0, min(1.0, reward_of(record))),
                "parts": parts_of(record),
                "times": counts[str(record.get("response", ""))],
            }
        )
    images = find_images(run.config, str(first.get("source", "")), str(first.get("key", "")))
    return {
        "run": run.name,
        "batch": first.get("rollout_batch"),
        "images": [uri for uri in map(data_uri, images) if uri is not None],
        "prompt": clipped(str(first.get("prompt", ""))),
        "gold": clipped(str(first.get("truth", ""))),
        "tries": tries,
        "count": len(group),
    }


def reward_of(record: dict[str, Any]) -> float:
    """The reward, 0 for one that failed."""
    reward: Any = record.get("reward")
    return float(reward) if is_number(reward) else 0.0


def parts_of(record: dict[str, Any]) -> list[tuple[str, float | None]]:
    """Values of the reward's parts; None for a part that failed."""
    return [(str(name), mapping(part).get("value")) for name, part in mapping(record.get("parts")).items()]
