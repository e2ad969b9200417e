"""Lines are appended, cut back on resume, and always JSON."""

import json
from pathlib import Path

import pytest

from sail_train.engine.rundir import RunDir


def test_lines_are_json_even_where_numbers_are_not_finite(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "new" / "run")
    run.append("metrics", {"loss": float("nan"), "nested": [float("inf"), {"x": -float("inf")}], "text": "ü"})
    line = (run.path / "metrics.jsonl").read_text(encoding="utf-8")
    assert json.loads(line) == {"loss": None, "nested": [None, {"x": None}], "text": "ü"} and "ü" in line


def test_truncate_brings_back_what_lengths_saw(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append("metrics", {"step": 1})
    run.event("start")
    lengths = run.lengths()
    run.append("metrics", {"step": 2})
    run.append("samples.jsonl", {"text": "later"})
    run.event("crash")
    run.truncate(lengths)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert (tmp_path / "samples.jsonl").read_text() == "", "it was not there yet"
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2, "history is kept"


def test_a_file_shorter_than_the_checkpoint_says_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append("metrics", {"step": 1})
    lengths = run.lengths()
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"metrics.jsonl has 0 bytes, the checkpoint says 12; it was changed since"):
        run.truncate(lengths)


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunDir(tmp_path).append("metrics", {"step": 1})
    monkeypatch.setenv("RANK", "1")
    run = RunDir(tmp_path / "elsewhere")
    run.event("start")
    RunDir(tmp_path).append("metrics", {"step": 2})
    RunDir(tmp_path).truncate({})
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_places(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    assert (run.checkpoints, run.model) == (tmp_path / "checkpoints", tmp_path / "model")
