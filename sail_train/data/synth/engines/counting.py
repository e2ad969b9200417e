"""Counting: how many things meet a condition, and where each is.

basic     3 to 9 things of one size, apart; all of them, or those of a colour or a shape
simple    8 to 16 things of two sizes, apart; colour and shape, size and colour, ...
complex   14 to 26 things that cover each other, at least 60% of each in sight; with "not", "or" and "how many more"

A thought points at each thing that counts, then says how many they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sail_train.data.synth.engines.item import Item, Request, pick, sample, whole
from sail_train.data.synth.engines.scene import Scene, Thing, build
from sail_train.data.synth.engines.words import COLOURS, SHAPES, SIZES, phrase

WRITES = False

Condition = dict[str, Any]
"""{"colour": .., "shape": .., "size": ..} (those given, all of them), {"not": condition} or {"or": [one, other]}."""


@dataclass(frozen=True, kw_only=True)
class Crowd:
    count: tuple[int, int]
    sizes: tuple[str, ...]
    gap: float
    visible: float
    """Least share of a thing in sight."""
    side: tuple[int, int] = (336, 560)


CROWDS = {
    "basic": Crowd(count=(3, 9), sizes=("large",), gap=1.15, visible=1.0),
    "simple": Crowd(count=(8, 16), sizes=("small", "large"), gap=1.15, visible=1.0),
    "complex": Crowd(count=(14, 26), sizes=("small", "large"), gap=0.75, visible=0.6),
}


def make(rng: np.random.Generator, request: Request) -> Item:
    scene = crowd(rng, CROWDS[request.level])
    if request.level == "complex" and rng.random() < 0.3:
        return _more(rng, request, scene)
    condition = CONDITIONS[request.level](rng, scene)
    thought, found = _pointed(request, scene, condition)
    question = request.say(
        f"How many {described(condition, 'en')} are there in the image?",
        f"图中有多少个{described(condition, 'zh')}？",
    )
    facts = {**scene.facts(), "condition": condition, "points": found}
    return Item(
        task="count",
        images=(scene.image(),),
        question=question,
        thought=thought,
        answer=str(len(found)),
        verifier="number",
        facts=facts,
    )


def crowd(rng: np.random.Generator, look: Crowd) -> Scene:
    """A scene in which every thing is seen well enough."""
    while True:
        colours, shapes = sample(rng, list(COLOURS), whole(rng, 3, 5)), sample(rng, list(SHAPES), whole(rng, 2, 4))
        kinds = [(pick(rng, look.sizes), pick(rng, colours), pick(rng, shapes)) for _ in range(whole(rng, *look.count))]
        scene = build(rng, kinds, side=look.side, gap=look.gap)
        if scene.least_visible() >= look.visible:
            return scene


def meets(thing: Thing, condition: Condition) -> bool:
    if "not" in condition:
        return not meets(thing, condition["not"])
    if "or" in condition:
        return any(meets(thing, part) for part in condition["or"])
    return all(getattr(thing, name) == value for name, value in condition.items())


def described(condition: Condition, language: str) -> str:
    """In words, in the plural."""
    zh = language == "zh"
    if "not" in condition:
        if zh:
            colour, shape = condition["not"].get("colour", ""), condition["not"].get("shape", "")
            return f"不是{COLOURS[colour][1] if colour else SHAPES[shape][1]}的物体"
        return f"objects that are not {_bare(condition['not'])}"
    if "or" in condition:
        one, other = condition["or"]
        if zh:
            return f"{COLOURS[one['colour']][1]}的或者是{SHAPES[other['shape']][1]}的物体（两者都满足的也算）"
        return f"objects that are {_bare(one)} or {_bare(other)} (or both)"
    return phrase(language, plural=True, **condition)


def _bare(condition: Condition) -> str:
    return condition.get("colour") or f"{SHAPES[condition['shape']][0]}"


def _basic(rng: np.random.Generator, scene: Scene) -> Condition:
    return _of(rng, scene, pick(rng, ((), ("colour",), ("shape",))))


def _simple(rng: np.random.Generator, scene: Scene) -> Condition:
    return _of(rng, scene, pick(rng, (("colour", "shape"), ("size", "colour"), ("size", "shape"))))


def _complex(rng: np.random.Generator, scene: Scene) -> Condition:
    kind = whole(rng, 0, 2)
    if kind == 0:
        return _of(rng, scene, ("size", "colour", "shape"))
    if kind == 1:
        return {"not": _of(rng, scene, (pick(rng, ("colour", "shape")),))}
    return {"or": [_of(rng, scene, ("colour",)), _of(rng, scene, ("shape",))]}


CONDITIONS: dict[str, Callable[[np.random.Generator, Scene], Condition]] = {
    "basic": _basic,
    "simple": _simple,
    "complex": _complex,
}


def _of(rng: np.random.Generator, scene: Scene, names: tuple[str, ...]) -> Condition:
    """Attributes of a thing that is there; of one in ten each is drawn alone, so that 0 is an answer too."""
    thing = pick(rng, scene.things)
    if rng.random() < 0.1:
        free = {"colour": pick(rng, list(COLOURS)), "shape": pick(rng, list(SHAPES)), "size": pick(rng, list(SIZES))}
        return {name: free[name] for name in names}
    return {name: getattr(thing, name) for name in names}


def _pointed(request: Request, scene: Scene, condition: Condition) -> tuple[str, list[list[int]]]:
    """(a thought that points at every thing that counts, their points), in reading order."""
    seen = scene.visible()
    pairs = zip(scene.things, seen, strict=True)
    points = [list(scene.point(mask)) for thing, mask in pairs if meets(thing, condition)]
    points.sort(key=lambda point: (point[1] // 100, point[0]))
    named = described(condition, request.language)
    if not points:
        return request.say(f"I look for {named}: there are none.", f"我来找{named}：一个也没有。"), points
    listed = ", ".join(f"{number}: <point>{x} {y}</point>" for number, (x, y) in enumerate(points, start=1))
    en = f"I point at each of the {named} in turn. {listed}. That makes {len(points)}."
    return request.say(en, f"我逐个指出{named}。{listed}。一共{len(points)}个。"), points


def _more(rng: np.random.Generator, request: Request, scene: Scene) -> Item:
    """How many more of one colour than of another."""
    counts = {colour: sum(thing.colour == colour for thing in scene.things) for colour in COLOURS}
    present = [colour for colour in COLOURS if counts[colour]]
    more, fewer = sorted(sample(rng, present, 2), key=lambda colour: -counts[colour])
    conditions = [{"colour": more}, {"colour": fewer}]
    parts = [_pointed(request, scene, condition) for condition in conditions]
    left, right, answer = counts[more], counts[fewer], counts[more] - counts[fewer]
    question = request.say(
        f"How many more {phrase('en', colour=more, plural=True)} than {phrase('en', colour=fewer, plural=True)} "
        "are there in the image?",
        f"图中{phrase('zh', colour=more)}比{phrase('zh', colour=fewer)}多几个？",
    )
    return Item(
        task="more",
        images=(scene.image(),),
        question=question,
        thought=f"{parts[0][0]}\n{parts[1][0]}\n{left} - {right} = {answer}",
        answer=str(answer),
        verifier="number",
        facts={**scene.facts(), "conditions": conditions, "points": [points for _, points in parts]},
    )
