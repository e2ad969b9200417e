"""Counting, grounding and differences: from the facts again, against the pixels, and nothing ambiguous."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from sail_train.data.synth.engines import counting, difference, grounding
from sail_train.data.synth.engines.item import LANGUAGES, LEVELS, Item, Request
from sail_train.data.synth.engines.scene import Scene, Thing, build
from sail_train.data.synth.engines.words import COLOURS, SHAPES

BOX = re.compile(r"<bbox>(\d+) (\d+) (\d+) (\d+)</bbox>")


def items(module: Any, level: str, count: int = 25, language: str = "en") -> list[Item]:
    return [module.make(np.random.default_rng([6, i]), Request(level=level, language=language)) for i in range(count)]


def fits(thing: dict[str, Any], condition: dict[str, Any]) -> bool:
    if set(condition) == {"not"}:
        return not fits(thing, condition["not"])
    if set(condition) == {"or"}:
        return fits(thing, condition["or"][0]) or fits(thing, condition["or"][1])
    return condition.items() <= thing.items()


@pytest.mark.parametrize("level", LEVELS)
def test_counts_follow_from_the_things(level: str) -> None:
    for item in items(counting, level):
        things = item.facts["things"]
        if item.task == "count":
            assert int(item.answer) == sum(fits(thing, item.facts["condition"]) for thing in things)
            assert item.thought.count("<point>") == int(item.answer)
        else:
            more, fewer = (sum(fits(thing, one) for thing in things) for one in item.facts["conditions"])
            assert int(item.answer) == more - fewer >= 0


@pytest.mark.parametrize("level", LEVELS)
def test_points_lie_on_the_things_that_count(level: str) -> None:
    for item in items(counting, level):
        if item.task != "count":
            continue
        pixels, (height, width) = np.asarray(item.images[0]), np.asarray(item.images[0]).shape[:2]
        colours = [
            COLOURS[thing["colour"]][0] for thing in item.facts["things"] if fits(thing, item.facts["condition"])
        ]
        hit = [tuple(pixels[int(y * height / 999), int(x * width / 999)].tolist()) for x, y in item.facts["points"]]
        assert sorted(hit) == sorted(colours)


def test_the_levels_keep_their_promises() -> None:
    for level, look in counting.CROWDS.items():
        for index in range(8):
            scene = counting.crowd(np.random.default_rng([2, index]), look)
            assert len(scene.things) <= look.count[1] and scene.least_visible() >= look.visible
            if level != "complex":
                total = sum(mask.astype(int) for mask in scene.masks())
                assert np.max(total) == 1, "nothing covers anything"
    hidden = [counting.crowd(np.random.default_rng([2, i]), counting.CROWDS["complex"]) for i in range(8)]
    assert any(scene.least_visible() < 1 for scene in hidden)


@pytest.mark.parametrize("module", [counting, grounding])
def test_a_box_is_tight_around_its_colour(module: Any) -> None:
    for item in items(module, "basic", 10):
        pixels = np.asarray(item.images[0])
        height, width = pixels.shape[:2]
        for thing in item.facts["things"]:
            x1, y1, x2, y2 = (round(v * side / 999) for v, side in zip(thing["box"], (width, height) * 2, strict=True))
            mask = (pixels == COLOURS[thing["colour"]][0]).all(-1)
            inside = mask[y1:y2, x1:x2]
            assert inside.mean() > 0.25 and mask[(y1 + y2) // 2, (x1 + x2) // 2]
            edges = (inside[:2].any(), inside[-2:].any(), inside[:, :2].any(), inside[:, -2:].any())
            assert all(edges), "the shape reaches every side of its box"


def meant(facts: dict[str, Any]) -> list[int]:
    """Every thing that meets the phrase, by the words alone."""
    target, things = facts["target"], facts["things"]
    like = [i for i, one in enumerate(things) if all(one[k] == target[k] for k in ("colour", "shape"))]
    kind = target["kind"]
    if kind == "plain":
        return like
    if kind == "sized":
        return [i for i in like if things[i]["size"] == target["size"]]
    order = {"left": ("x", 1), "right": ("x", -1), "above": ("y", 1), "below": ("y", -1)}
    if kind == "most":
        axis, sign = order[target["relation"]]
        best = min(sign * things[i][axis] for i in like)
        return [i for i in like if sign * things[i][axis] == best]
    anchors = [i for i, one in enumerate(things) if all(one[k] == target["anchor"][k] for k in ("colour", "shape"))]
    assert anchors == [target["anchor"]["place"]], "the thing it is compared with is the only one of its kind"
    stone = things[anchors[0]]
    if kind == "nearest":
        far = {i: (things[i]["x"] - stone["x"]) ** 2 + (things[i]["y"] - stone["y"]) ** 2 for i in like}
        return [i for i in like if far[i] <= min(far.values()) * 1.5]
    axis, sign = order[target["relation"]]
    side = {"x": facts["width"], "y": facts["height"]}[axis]
    # what is only just on the other side would make the phrase doubtful
    return [i for i in like if sign * (stone[axis] - things[i][axis]) > -0.05 * side]


@pytest.mark.parametrize("level", LEVELS)
def test_exactly_one_thing_is_meant(level: str) -> None:
    kinds = set()
    for item in items(grounding, level, 40):
        assert meant(item.facts) == [item.facts["place"]], item.question
        answer = [int(value) for value in BOX.fullmatch(item.answer).groups()]  # type: ignore[union-attr]
        assert answer == item.facts["things"][item.facts["place"]]["box"]
        assert item.thought.endswith(item.answer)
        kinds.add(item.task)
    assert kinds == {"basic": {"plain"}, "simple": {"sized", "most"}, "complex": {"related", "nearest"}}[level]


@pytest.mark.parametrize("level", LEVELS)
def test_the_pictures_differ_inside_the_boxes_and_nowhere_else(level: str) -> None:
    for item in items(difference, level, 12):
        first, second = (np.asarray(image) for image in item.images)
        differs = (first != second).any(-1)
        height, width = differs.shape
        outside = differs.copy()
        for change in item.facts["changes"]:
            box = zip(change["box"], (width, height) * 2, strict=True)
            x1, y1, x2, y2 = (round(value * side / 999) for value, side in box)
            assert differs[y1:y2, x1:x2].any()
            outside[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = False
        assert not outside.any()


@pytest.mark.parametrize("level", LEVELS)
def test_differences_follow_from_the_two_scenes(level: str) -> None:
    kinds, tasks = set(), set()
    for item in items(difference, level, 30):
        sides = [
            {(one["x"], one["y"]): (one["shape"], one["colour"], one["size"]) for one in item.facts[side]["things"]}
            for side in ("first", "second")
        ]
        found = sum(sides[0].get(place) != sides[1].get(place) for place in sides[0].keys() | sides[1].keys())
        assert found == len(item.facts["changes"]) >= 1
        truth = found if item.task == "number" else len(BOX.findall(item.answer))
        assert truth == found and (item.task == "boxes" or item.answer == str(found))
        kinds |= {change["kind"] for change in item.facts["changes"]}
        tasks.add(item.task)
    assert kinds == set(difference.PUZZLES[level].kinds) and tasks == {"number", "boxes"}


def test_boxes_of_differences_do_not_overlap() -> None:
    for item in items(difference, "complex", 12):
        boxes = [change["box"] for change in item.facts["changes"]]
        for place, (x1, y1, x2, y2) in enumerate(boxes):
            for a1, b1, a2, b2 in boxes[place + 1 :]:
                assert (min(x2, a2) - max(x1, a1)) * (min(y2, b2) - max(y1, b1)) < 0.3 * (x2 - x1) * (y2 - y1) or (
                    min(x2, a2) <= max(x1, a1) or min(y2, b2) <= max(y1, b1)
                )


def test_what_is_covered_is_not_in_sight() -> None:
    below = Thing(shape="square", colour="red", size="large", x=50, y=50, radius=20)
    above = Thing(shape="square", colour="blue", size="large", x=64, y=50, radius=20)
    scene = Scene(width=120, height=100, ground=(255, 255, 255), things=(below, above))
    seen = scene.visible()
    assert seen[1].sum() == scene.masks()[1].sum() and 0.4 < scene.least_visible() < 0.6
    assert scene.box(seen[0])[2] == round((64 - 14) / 120 * 999), "up to where the other begins"
    x, y = scene.point(seen[0])
    assert np.asarray(scene.image())[int(y * 100 / 999), int(x * 120 / 999)].tolist() == list(COLOURS["red"][0])


def test_a_scene_without_room_has_fewer_things() -> None:
    scene = build(np.random.default_rng(0), [("large", "red", "circle")] * 400, side=(336, 336), gap=1.2)
    assert 20 < len(scene.things) < 400


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_say_what_is_meant(language: str) -> None:
    said = {
        counting.described(condition, language)
        for condition in (
            {}, {"colour": "red"}, {"shape": "star"}, {"colour": "red", "shape": "star"}, {"size": "small"},
            {"not": {"colour": "red"}}, {"not": {"shape": "star"}}, {"or": [{"colour": "red"}, {"shape": "star"}]},
        )
    }  # fmt: skip
    assert len(said) == 8 and len({names for names in SHAPES.values()}) == len(SHAPES)
