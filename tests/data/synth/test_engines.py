"""Every engine at every level and in both languages: answers that grade as right, the same bytes again, sound boxes."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

import numpy as np
import pytest

from sail_train.data.synth.engines import ENGINES, chart_draw, fonts
from sail_train.data.synth.engines.item import LANGUAGES, LEVELS, Item, Request
from sail_train.data.synth.generate import engine, png, response
from sail_train.rewards import VERIFIERS, verify
from sail_train.rewards.format import format_ok

COUNT = 6
BOX = re.compile(r"<bbox>(\d+) (\d+) (\d+) (\d+)</bbox>")


def has_chinese() -> bool:
    try:
        fonts.chinese()
    except ValueError:
        return False
    return True


@pytest.fixture(autouse=True)
def some_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a Chinese font Chinese is drawn as empty boxes: what is said of it is tested all the same."""
    if not has_chinese():
        monkeypatch.setattr(fonts, "chinese", lambda *, bold=False: fonts.latin("sans", bold=bold))
        monkeypatch.setattr(chart_draw, "_chinese_family", lambda: "DejaVu Sans")


def items(name: str, level: str, language: str, count: int = COUNT) -> list[Item]:
    make, request = engine(name)[0], Request(level=level, language=language)
    return [make(np.random.default_rng([5, index]), request) for index in range(count)]


pytestmark = pytest.mark.filterwarnings("ignore:Glyph")

EVERY = [(name, level, language) for name in ENGINES for level in LEVELS for language in LANGUAGES]


@pytest.mark.parametrize(("name", "level", "language"), EVERY)
def test_the_recorded_answer_is_right_and_another_is_wrong(name: str, level: str, language: str) -> None:
    for item in items(name, level, language):
        assert item.verifier in VERIFIERS
        for mode in ("think", "direct") if item.thought else ("direct",):
            said = response(item, mode)
            score = verify(item.verifier, item.answer, said)
            assert (score.value, score.status) == (1.0, "ok"), (item.question, said, score)
            assert mode == "direct" or format_ok(said, "stop", "think").value == 1.0
        score = verify(item.verifier, item.answer, wrong(item))
        assert score.value == 0.0 and not score.failed, (item.answer, wrong(item), score)


def wrong(item: Item) -> str:
    """An answer of the same form that is not it."""
    if item.verifier == "number":
        return str(float(item.answer) + 1)
    if item.verifier == "math":
        return r"\boxed{-\frac{1}{997}}"
    if item.verifier in ("box", "boxes"):
        return "<bbox>0 0 2 2</bbox>"
    return "@" * len(item.answer)


@pytest.mark.parametrize(("name", "level", "language"), EVERY)
def test_the_same_draw_gives_the_same_bytes(name: str, level: str, language: str) -> None:
    one, again = (items(name, level, language, 2) for _ in range(2))
    for a, b in zip(one, again, strict=True):
        assert (a.question, a.answer, a.thought, a.facts) == (b.question, b.answer, b.thought, b.facts)
        assert [png(image) for image in a.images] == [png(image) for image in b.images]
    assert png(one[0].images[0]) != png(one[1].images[0]), "another draw is another picture"


@pytest.mark.parametrize(("name", "level", "language"), EVERY)
def test_facts_are_json_and_boxes_lie_within_the_image(name: str, level: str, language: str) -> None:
    for item in items(name, level, language):
        assert json.loads(json.dumps(item.facts)) == item.facts
        texts = " ".join((item.question, item.thought, item.answer))
        boxes = [tuple(map(int, found)) for found in BOX.findall(texts)] + list(_boxes(item.facts))
        for x1, y1, x2, y2 in boxes:
            assert 0 <= x1 < x2 <= 999 and 0 <= y1 < y2 <= 999, item.task


def _boxes(facts: Any) -> Any:
    if isinstance(facts, dict):
        if "box" in facts:
            yield tuple(facts["box"])
        facts = list(facts.values())
    for part in facts if isinstance(facts, list) else ():
        yield from _boxes(part)


@pytest.mark.parametrize("name", ENGINES)
def test_questions_are_in_the_asked_language(name: str) -> None:
    chinese = re.compile(r"[\u4e00-\u9fff]")
    for level in LEVELS:
        assert all(chinese.search(item.question) is None for item in items(name, level, "en", 3))
    assert all(chinese.search(item.question) for level in LEVELS for item in items(name, level, "zh", 3))


@pytest.mark.parametrize("name", ENGINES)
def test_a_module_tells_its_levels(name: str) -> None:
    text = importlib.import_module(ENGINES[name]).__doc__
    assert text and all(re.search(rf"^{level} ", text, re.MULTILINE) for level in LEVELS)


def test_pictures_carry_nothing_but_pixels() -> None:
    for name in ("chart", "difference"):
        for image in items(name, "basic", "en", 1)[0].images:
            chunks, data = [], png(image)
            place = 8
            while place < len(data):
                length = int.from_bytes(data[place : place + 4], "big")
                chunks.append(data[place + 4 : place + 8])
                place += 12 + length
            assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
