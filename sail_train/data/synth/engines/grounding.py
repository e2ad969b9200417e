"""Grounding: the box of the one thing that a phrase names.

basic     3 to 8 things apart; colour and shape are enough
simple    6 to 12 things; the size is needed too, or "leftmost", "topmost" ... among its like
complex   10 to 18 things; "the red square to the left of the blue circle", or the one nearest to it, among its like

A phrase is asked only if exactly one thing meets it, and none nearly does: "left" by at least a twentieth of the image,
"nearest" by at least a quarter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sail_train.data.synth.engines.counting import Crowd, crowd
from sail_train.data.synth.engines.item import Item, Request, pick
from sail_train.data.synth.engines.scene import Scene, Thing, bbox
from sail_train.data.synth.engines.words import MOST, RELATIONS, phrase

WRITES = False

CROWDS = {
    "basic": Crowd(count=(3, 8), sizes=("large",), gap=1.2, visible=1.0),
    "simple": Crowd(count=(6, 12), sizes=("small", "large"), gap=1.2, visible=1.0),
    "complex": Crowd(count=(10, 18), sizes=("small", "large"), gap=1.2, visible=1.0),
}
MARGIN = 0.05
"""Share of the image by which something must be to the left, or above."""
NEARER = 0.75
"""The nearest thing's distance over the next one's is at most this."""

Named = tuple[int, dict[str, Any], str, str]
"""Which thing, the phrase as facts, in English and in Chinese."""


def make(rng: np.random.Generator, request: Request) -> Item:
    while True:
        scene = crowd(rng, CROWDS[request.level])
        found = NAMINGS[request.level](scene)
        if found:
            break
    place, target, en, zh = pick(rng, found)
    facts = scene.facts()
    box = facts["things"][place]["box"]
    asked = request.say(f"Give the box of the {en} as <bbox>x1 y1 x2 y2</bbox>, in thousandths (0-999) of the image.",
                        f"请用<bbox>x1 y1 x2 y2</bbox>（0-999的相对坐标）给出{zh}的边界框。")  # fmt: skip
    return Item(
        task=str(target["kind"]),
        images=(scene.image(),),
        question=asked,
        thought=_thought(request, scene, facts, place, target),
        answer=bbox(box),
        verifier="box",
        facts={**facts, "target": target, "place": place},
    )


def alike(scene: Scene, place: int) -> list[int]:
    """Places of the things of the same colour and shape, itself among them."""
    one = scene.things[place]
    return [i for i, thing in enumerate(scene.things) if (thing.colour, thing.shape) == (one.colour, one.shape)]


def _noun(thing: Thing, language: str, *, size: bool = False) -> str:
    return phrase(language, size=thing.size if size else "", colour=thing.colour, shape=thing.shape)


def _plain(scene: Scene) -> list[Named]:
    """Colour and shape are enough."""
    return [
        (i, {"kind": "plain", "colour": thing.colour, "shape": thing.shape}, _noun(thing, "en"), _noun(thing, "zh"))
        for i, thing in enumerate(scene.things)
        if len(alike(scene, i)) == 1
    ]


def _sized(scene: Scene) -> list[Named]:
    """One of a colour and shape is of its size."""
    found: list[Named] = []
    for i, thing in enumerate(scene.things):
        like = alike(scene, i)
        if len(like) > 1 and sum(scene.things[j].size == thing.size for j in like) == 1:
            target = {"kind": "sized", "size": thing.size, "colour": thing.colour, "shape": thing.shape}
            found.append((i, target, _noun(thing, "en", size=True), _noun(thing, "zh", size=True)))
    return found


def ahead(scene: Scene, relation: str, one: Thing, other: Thing) -> float:
    """By which share of the image `one` is to the left of (above, ...) `other`; below 0 if it is not."""
    across, down = (other.x - one.x) / scene.width, (other.y - one.y) / scene.height
    return {"left": across, "right": -across, "above": down, "below": -down}[relation]


def _outermost(scene: Scene) -> list[Named]:
    """The leftmost (topmost, ...) of its like."""
    found: list[Named] = []
    for relation, (en, zh) in MOST.items():
        for i, thing in enumerate(scene.things):
            others = [scene.things[j] for j in alike(scene, i) if j != i]
            if others and all(ahead(scene, relation, thing, other) >= MARGIN for other in others):
                target = {"kind": "most", "relation": relation, "colour": thing.colour, "shape": thing.shape}
                found.append((i, target, f"{en} {_noun(thing, 'en')}", f"{zh}的{_noun(thing, 'zh')}"))
    return found


def _related(scene: Scene) -> list[Named]:
    """The only one of its like on one side of a thing that is itself the only one of its like."""
    found: list[Named] = []
    for anchor, (relation, (en, zh)) in ((a, r) for a, *_ in _plain(scene) for r in RELATIONS.items()):
        stone = scene.things[anchor]
        for i, thing in enumerate(scene.things):
            sides = {j: ahead(scene, relation, scene.things[j], stone) for j in alike(scene, i)}
            apart = all(abs(side) >= MARGIN for side in sides.values())
            if i != anchor and len(sides) > 1 and apart and [j for j in sides if sides[j] > 0] == [i]:
                found.append(
                    (
                        i,
                        _to(anchor, stone, thing, relation),
                        f"{_noun(thing, 'en')} {en} the {_noun(stone, 'en')}",
                        f"{_noun(stone, 'zh')}{zh}的{_noun(thing, 'zh')}",
                    )
                )
    return found


def _nearest(scene: Scene) -> list[Named]:
    """The nearest of its like to a thing that is the only one of its like."""
    found: list[Named] = []
    for anchor, *_ in _plain(scene):
        stone = scene.things[anchor]
        for i, thing in enumerate(scene.things):
            far = {j: math.dist((stone.x, stone.y), (scene.things[j].x, scene.things[j].y)) for j in alike(scene, i)}
            if i != anchor and len(far) > 1 and all(far[i] <= NEARER * far[j] for j in far if j != i):
                en = f"{_noun(thing, 'en')} nearest to the {_noun(stone, 'en')}"
                zh = f"离{_noun(stone, 'zh')}最近的{_noun(thing, 'zh')}"
                found.append((i, _to(anchor, stone, thing, "nearest"), en, zh))
    return found


def _to(anchor: int, stone: Thing, thing: Thing, relation: str) -> dict[str, Any]:
    return {
        "kind": "nearest" if relation == "nearest" else "related",
        "relation": relation,
        "colour": thing.colour,
        "shape": thing.shape,
        "anchor": {"place": anchor, "colour": stone.colour, "shape": stone.shape},
    }


def _mixed(*ways: Callable[[Scene], list[Named]]) -> Callable[[Scene], list[Named]]:
    return lambda scene: [named for way in ways for named in way(scene)]


NAMINGS: dict[str, Callable[[Scene], list[Named]]] = {
    "basic": _plain,
    "simple": _mixed(_sized, _outermost),
    "complex": _mixed(_related, _nearest),
}


def _thought(request: Request, scene: Scene, facts: dict[str, Any], place: int, target: dict[str, Any]) -> str:
    """Everything that looks like it with its box, what it is compared with, and which one it is."""
    boxes = [bbox(thing["box"]) for thing in facts["things"]]
    thing = scene.things[place]
    sizes = len({one.size for one in scene.things}) > 1
    steps = [f"{_noun(scene.things[j], request.language, size=sizes)}: {boxes[j]}" for j in alike(scene, place)]
    if anchor := target.get("anchor"):
        stone = scene.things[anchor["place"]]
        steps.insert(0, f"{_noun(stone, request.language, size=sizes)}: {boxes[anchor['place']]}")
    noun = _noun(thing, request.language)
    return "\n".join(
        [*steps, request.say(f"The {noun} that is meant: {boxes[place]}", f"所指的{noun}：{boxes[place]}")]
    )
