"""The synthetic data set: the same bytes every time, real scans kept apart, and answers that are true."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.synth.run import run, synthesize
from sail_train.data.synth.scans import CELL, digit_grid, scans
from sail_train.data.synth.sources import HELD_OUT, TRAIN, draw, members
from sail_train.data.synth.visual import Sample
from sail_train.rewards.format import split_thought
from sail_train.rewards.verifiers import verify
from sail_train.types import Conversation

SCALE = 0.02


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synth") / "data"
    synthesize(root, scale=SCALE)
    return root


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def conversations(root: Path, side: str, source: str) -> list[Conversation]:
    return held_out({source: SourceConfig(shards=f"{root}/{side}/{source}/*.tar", max_bad=0)})


def test_the_same_options_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "again", scale=SCALE)
    first, again = files(made), files(tmp_path / "again")
    assert first.keys() == again.keys() and len(first) > 20
    assert [name for name in first if first[name] != again[name]] == []


def test_another_seed_gives_other_samples() -> None:
    for name, source in TRAIN.items():
        one, same, other = (
            [draw(name, source, index, seed=seed, hasty=0.5, held_out=False) for index in range(8)]
            for seed in (0, 0, 1)
        )
        assert [sample.question + sample.response for sample in one] == [s.question + s.response for s in same]
        assert [(sample.question, sample.response, pixels(sample)) for sample in one] != [
            (sample.question, sample.response, pixels(sample)) for sample in other
        ], name


def pixels(sample: Sample) -> list[bytes]:
    return [image.tobytes() for image in sample.images]


def test_every_source_has_shards_and_a_tokenizer_is_beside_them(made: Path) -> None:
    for side, sources in (("train", TRAIN), ("eval", HELD_OUT)):
        assert sorted(path.name for path in (made / side).iterdir()) == sorted(sources)
        for name, source in sources.items():
            expected = max(50, round(source.num_samples * SCALE)) if side == "train" else source.num_samples
            assert len(conversations(made, side, name)) == expected, (side, name)
    assert (made / "tokenizer" / "tokenizer.json").is_file()
    written = json.loads((made / "synth.json").read_text())
    assert (written["seed"], written["hasty"], written["scale"]) == (0, 0.6, SCALE)
    assert written["teacher"].startswith("60% of the teacher's thoughts"), "the flaw is told with the data"


def test_training_never_sees_a_held_out_scan() -> None:
    seen, held = ({scan.tobytes() for digit in scans(side) for scan in digit} for side in (False, True))
    assert not seen & held
    sizes = [sum(len(digit) for digit in scans(side)) for side in (False, True)]
    assert sum(sizes) == 1797 and sizes[1] == pytest.approx(1797 / 5, abs=1)
    assert min(len(digit) for digit in scans(True)) >= 20, "every digit can be held out"


def test_held_out_grids_show_held_out_scans_and_training_grids_the_others() -> None:
    """Looked up in the picture itself: cell by cell, at every shift that training may give."""
    digits = np.arange(9).reshape(3, 3)
    for side in (False, True):
        picture = np.asarray(digit_grid(digits, np.random.default_rng(3), held_out=side))[:, :, 0].astype(float)
        for (row, col), digit in np.ndenumerate(digits):
            cell = picture[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL]
            distances = [nearest(cell, scans(other)[digit], shifted=not side) for other in (False, True)]
            assert distances[side] < 0.1 < distances[not side], (side, digit, distances)


def nearest(cell: np.ndarray, known: np.ndarray, *, shifted: bool) -> float:
    """Distance of a cell to the closest of `known` scans, contrast apart."""
    places = [(top, left) for top in range(5) for left in range(5)] if shifted else [(2, 2)]
    shape, scans_of_digit = known.shape[1:], known.reshape(len(known), -1).astype(float)
    norms = np.linalg.norm(scans_of_digit, axis=1)
    best = np.inf
    for top, left in places:
        window = cell[top : top + shape[0], left : left + shape[1]].ravel()
        likeness = scans_of_digit @ window / (norms * max(np.linalg.norm(cell), 1.0))
        best = min(best, float(np.sqrt(np.maximum(0.0, 2 - 2 * likeness.max()))))
    return best


@pytest.mark.parametrize("source", TRAIN)
def test_a_careful_teacher_is_always_right(source: str) -> None:
    """By the verifier that the sample itself names: no answer is guessed."""
    for index in range(60):
        sample = draw(source, TRAIN[source], index, seed=1, hasty=0.0, held_out=False)
        score = verify(sample.verifier, sample.answer, sample.response)
        assert (score.value, score.status) == (1.0, "ok"), (sample.question, sample.response, sample.answer)


def test_held_out_answers_are_right_as_they_are_read_back(made: Path) -> None:
    for source in HELD_OUT:
        for conversation in conversations(made, "eval", source)[:80]:
            assert conversation.answer is not None and conversation.verifier is not None
            said = conversation.messages[-1].text
            assert verify(conversation.verifier, conversation.answer, said).value == 1.0, (source, said)


@pytest.mark.parametrize("hasty", [0.0, 0.3, 1.0])
def test_the_share_of_hasty_thoughts_is_what_was_asked(hasty: float) -> None:
    """A hasty thought stops a third before its end."""
    count, short = 600, 0
    for index in range(count):
        sample = draw("thoughts", TRAIN["thoughts"], index, seed=2, hasty=hasty, held_out=False)
        thought, _ = split_thought(sample.response)
        assert thought is not None
        seen, running = thought.split(";")
        steps = len(running.split()) if sample.meta["task"] == "sum" else len(running.strip())
        assert steps in (len(seen), len(seen) * 2 // 3)
        short += steps < len(seen)
    assert short / count == pytest.approx(hasty, abs=4 * (hasty * (1 - hasty) / count) ** 0.5)


def test_only_the_teacher_of_thoughts_is_hasty(made: Path) -> None:
    wrong = {
        source: sum(
            verify(str(one.verifier), str(one.answer), one.messages[-1].text).value < 1
            for one in conversations(made, "train", source)
        )
        for source in TRAIN
    }
    assert wrong.pop("thoughts") > 0
    assert not any(wrong.values()), wrong


def test_thoughts_write_down_what_is_there(made: Path) -> None:
    for conversation in conversations(made, "train", "thoughts"):
        thought, _ = split_thought(conversation.messages[-1].text)
        assert thought is not None and thought.split(";")[0].strip() == conversation.meta["cells"]
        assert conversation.mode == "think"


def test_tasks_of_a_source_come_about_equally_often() -> None:
    drawn = Counter(
        re.sub(r"\d", "", draw("steps", TRAIN["steps"], index, seed=0, hasty=0.0, held_out=False).question)
        for index in range(300)
    )
    assert len(drawn) == 2 and min(drawn.values()) > 100


def test_a_longer_source_begins_with_the_shorter_one() -> None:
    short, long = (
        [*members("read", replace(TRAIN["read"], num_samples=count), seed=0, hasty=0.0, held_out=False)]
        for count in (3, 6)
    )
    assert long[:3] == short and len({files["0.png"] for files in long}) == 6


def test_webdataset_itself_iterates_the_shards(made: Path) -> None:
    import webdataset

    shards = [str(path) for path in sorted((made / "train" / "frames").glob("*.tar"))]
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    expected = conversations(made, "train", "frames")
    assert [sample["__key__"] for sample in found] == [conversation.key for conversation in expected]
    for sample, conversation in zip(found, expected, strict=True):
        assert sample["json"]["answer"] == conversation.answer
        images = [sample[f"{place}.png"] for place in range(len(conversation.images))]
        assert all(image.size == (3 * CELL, CELL) for image in images) and f"{len(images)}.png" not in sample


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hasty": 1.5}, "hasty=1.5 must be a share from 0 to 1"),
        ({"hasty": -0.1}, "hasty=-0.1 must be"),
        ({"scale": 0.0}, "scale=0.0 must be above 0"),
    ],
)
def test_impossible_options_are_refused(tmp_path: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthesize(tmp_path / "data", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "data").exists()


def test_a_directory_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; remove it, or name another directory with --out"):
        synthesize(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(["--out", str(tmp_path)])
    assert ended.value.code == 2 and "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("other_seed", [0, 1])
def test_of_two_processes_one_makes_the_data_and_the_other_waits(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, other_seed: int
) -> None:
    """And takes it as it is, or refuses it where it asked for other data."""
    out = tmp_path / "data"
    with ThreadPoolExecutor(1) as threads, (tmp_path / ".data.lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with caplog.at_level("INFO"):
            waiting = threads.submit(synthesize, out, scale=SCALE, seed=other_seed)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            assert not (tmp_path / "data.partial").exists() and "waiting for it" in caplog.text
            shutil.copytree(made, out)
            fcntl.flock(first, fcntl.LOCK_UN)
            if other_seed:
                with pytest.raises(ValueError, match="is not empty"):
                    waiting.result(timeout=60)
            else:
                waiting.result(timeout=60)
    assert (out / "synth.json").read_bytes() == (made / "synth.json").read_bytes()
