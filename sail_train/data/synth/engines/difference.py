"""Spot the difference: two pictures of one scene, some things changed in the second.

basic     4 to 8 things, 1 or 2 differences: a thing gone, new, or of another colour
simple    8 to 14 things, 2 to 4 differences: another shape too
complex   14 to 22 things, 3 to 7 differences: another size too

Asked is how many there are, or a box around each: the pixels of the thing before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sail_train.data.synth.engines.counting import Crowd, crowd
from sail_train.data.synth.engines.item import Item, Request, pick, sample, whole
from sail_train.data.synth.engines.scene import RADII, Scene, Thing, bbox
from sail_train.data.synth.engines.words import COLOURS, SHAPES, phrase

WRITES = False


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    crowd: Crowd
    changes: tuple[int, int]
    kinds: tuple[str, ...]


PUZZLES = {
    "basic": Puzzle(
        crowd=Crowd(count=(4, 8), sizes=("large",), gap=1.25, visible=1.0),
        changes=(1, 2),
        kinds=("gone", "new", "colour"),
    ),
    "simple": Puzzle(
        crowd=Crowd(count=(8, 14), sizes=("large",), gap=1.25, visible=1.0),
        changes=(2, 4),
        kinds=("gone", "new", "colour", "shape"),
    ),
    # all large at first, so that another size always has room
    "complex": Puzzle(
        crowd=Crowd(count=(14, 22), sizes=("large",), gap=1.25, visible=1.0, side=(448, 672)),
        changes=(3, 7),
        kinds=("gone", "new", "colour", "shape", "size"),
    ),
}


def make(rng: np.random.Generator, request: Request) -> Item:
    puzzle = PUZZLES[request.level]
    scene = crowd(rng, puzzle.crowd)
    count = min(whole(rng, *puzzle.changes), len(scene.things) - 1)
    kinds = {place: pick(rng, puzzle.kinds) for place in sample(rng, range(len(scene.things)), count)}
    before: list[Thing | None] = list(scene.things)
    after: list[Thing | None] = list(scene.things)
    for place, kind in kinds.items():
        if kind == "new":
            before[place] = None
        else:
            after[place] = _changed(rng, scene.things[place], kind)
    changes = _changes(scene, before, after, kinds)
    first, second = (scene.with_things([one for one in side if one]) for side in (before, after))
    return _item(rng, request, first, second, changes)


def _changed(rng: np.random.Generator, thing: Thing, kind: str) -> Thing | None:
    if kind == "gone":
        return None
    if kind == "colour":
        return replace(thing, colour=pick(rng, [colour for colour in COLOURS if colour != thing.colour]))
    if kind == "shape":
        return replace(thing, shape=pick(rng, [shape for shape in SHAPES if shape != thing.shape]))
    return replace(thing, size="small", radius=round(thing.radius * RADII["small"] / RADII["large"]))


def _changes(
    scene: Scene, before: list[Thing | None], after: list[Thing | None], kinds: dict[int, str]
) -> list[dict[str, Any]]:
    """What changed, in reading order, each with the box around both states."""
    found = []
    for place, kind in kinds.items():
        states = [one for one in (before[place], after[place]) if one]
        masks = scene.with_things(states).masks()
        sides = [one and _look(one, size=kind == "size") for one in (before[place], after[place])]
        box = list(scene.box(np.logical_or.reduce(masks)))
        found.append({"kind": kind, "before": sides[0], "after": sides[1], "box": box})
    return sorted(found, key=lambda change: (change["box"][1] // 100, change["box"][0]))


def _look(thing: Thing, *, size: bool) -> dict[str, str]:
    look = {"colour": thing.colour, "shape": thing.shape}
    return {"size": thing.size, **look} if size else look


def _item(
    rng: np.random.Generator, request: Request, first: Scene, second: Scene, changes: list[dict[str, Any]]
) -> Item:
    listed = "\n".join(f"{number}. {_told(request, change)}" for number, change in enumerate(changes, start=1))
    facts = {"first": first.facts(), "second": second.facts(), "changes": changes}
    if rng.random() < 0.5:
        question = request.say("How many differences are there between the two images?", "两幅图之间有多少处不同？")
        task, answer, verifier = "number", str(len(changes)), "number"
        closing = request.say(f"That makes {answer} in all.", f"一共{answer}处不同。")
    else:
        question = request.say(
            "Give a box around every difference between the two images, each as <bbox>x1 y1 x2 y2</bbox>, in "
            "thousandths (0-999) of the image.",
            "请用<bbox>x1 y1 x2 y2</bbox>（0-999的相对坐标）框出两幅图之间的每一处不同。",
        )
        task, answer, verifier = "boxes", " ".join(bbox(change["box"]) for change in changes), "boxes"
        closing = request.say("These are all differences.", "这些就是全部不同。")
    return Item(
        task=task,
        images=(first.image(), second.image()),
        question=question,
        thought=f"{listed}\n{closing}",
        answer=answer,
        verifier=verifier,
        facts=facts,
    )


def _told(request: Request, change: dict[str, Any]) -> str:
    box, language = bbox(change["box"]), request.language
    old, new = (phrase(language, **change[side]) if change[side] else "" for side in ("before", "after"))
    if not new:
        return request.say(f"The {old} at {box} is gone.", f"{box}处的{old}不见了。")
    if not old:
        return request.say(f"A {new} at {box} is new.", f"{box}处多了一个{new}。")
    return request.say(f"The {old} at {box} became a {new}.", f"{box}处的{old}变成了{new}。")
