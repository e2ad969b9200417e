"""The loop around the step: a run that is killed, stopped or damaged ends like one that was not."""

import json
import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
from engine_work import TinyWork, train_tiny

from sail_train.engine import loop
from sail_train.engine.checkpoint import SaveFailed
from sail_train.engine.deepspeed import TrainingDiverged


class Killed(BaseException):
    """Stands for SIGKILL."""


def events(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    train_tiny(directory)
    return directory


def same_weights(one: Path, other: Path) -> bool:
    last = "checkpoints/step-00000008/optimizer-00000-of-00001.safetensors"
    return (one / last).read_bytes() == (other / last).read_bytes()


def test_a_run_leaves_its_record(whole: Path) -> None:
    lines = metrics(whole)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 4, 5, 6, 7, 8], "the fifth step's NaN is skipped"
    skipped = [line for line in steps if line.get("skipped")]
    assert len(skipped) == 1 and skipped[0]["loss"] is None
    first = steps[0]
    assert first["samples"] == 4 and first["tokens"] == 28 and first["trained_tokens"] == 11 and first["images"] == 4
    assert first["loss/a"] == pytest.approx(first["loss"], rel=0.5) and "loss/c" not in first, "no token, no mean"
    assert first["lr/adapter"] == 5e-3 and first["rows"] == 4 and first["fill"] == 0.5
    assert first["tokens_per_s"] == pytest.approx(28 / first["seconds"])
    assert "mfu" not in first and "stop" not in first and "quarantined" not in first
    assert [line["step"] for line in lines if "valid/loss" in line] == [2, 4, 6, 8]
    assert len((whole / "quarantine.jsonl").read_text().splitlines()) == 3
    assert [event["event"] for event in events(whole)][0] == "start"
    assert [event["step"] for event in events(whole) if event["event"] == "checkpoint"] == [3, 6, 8]
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]


def test_the_best_weights_are_kept(whole: Path) -> None:
    losses = {line["step"]: line["valid/loss"] for line in metrics(whole) if "valid/loss" in line}
    best = json.loads((whole / "best" / "best.json").read_text())
    assert best == {"step": min(losses, key=losses.__getitem__), "loss": min(losses.values())}
    weights = safetensors.torch.load_file(whole / "best" / "model.safetensors")
    assert weights["vlm.adapter.weight"].shape == (8, 8) and "vlm.steps_seen" in weights
    assert not list(whole.glob(".best*"))


@pytest.mark.parametrize("kill_at", [0, 2, 3, 4, 6, 7])
def test_a_killed_run_equals_an_uninterrupted_one(whole: Path, tmp_path: Path, kill_at: int) -> None:
    def kill(step: int) -> None:
        if step == kill_at:
            raise Killed

    with pytest.raises(Killed):
        train_tiny(tmp_path, before_step=kill)
    outcome = train_tiny(tmp_path)
    assert (outcome.status, outcome.steps, outcome.skipped) == ("finished", 8, 1)
    assert outcome.tokens == 9 * 28
    assert TinyWork.comparable(tmp_path) == TinyWork.comparable(whole)
    assert same_weights(tmp_path, whole)


def test_a_kill_while_saving_equals_an_uninterrupted_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.rename, 0

    def deadly(*args: str) -> None:
        nonlocal calls
        calls += args[1:] != () and "checkpoints" in str(args[0])
        if calls == 2:
            raise Killed
        real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", deadly)
        with pytest.raises(Killed):
            train_tiny(tmp_path)
    train_tiny(tmp_path)
    resume = next(event for event in events(tmp_path) if event["event"] == "resume")
    assert resume["checkpoint"] == "step-00000003" and resume["refused"] == []
    assert TinyWork.comparable(tmp_path) == TinyWork.comparable(whole)
    assert same_weights(tmp_path, whole)


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(whole: Path, tmp_path: Path) -> None:
    def kill(step: int) -> None:
        if step == 8:
            raise Killed

    with pytest.raises(Killed):
        train_tiny(tmp_path, before_step=kill)
    file = tmp_path / "checkpoints" / "step-00000006" / "optimizer-00000-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    train_tiny(tmp_path)
    resume = next(event for event in events(tmp_path) if event["event"] == "resume")
    assert resume["checkpoint"] == "step-00000003"
    assert resume["refused"] == [f"step-00000006: {file.name} does not match its sha256"]
    assert TinyWork.comparable(tmp_path) == TinyWork.comparable(whole)
    assert same_weights(tmp_path, whole)


def test_when_no_checkpoint_verifies_it_does_not_start_over_by_itself(tmp_path: Path) -> None:
    train_tiny(tmp_path, max_steps=2)
    before = (tmp_path / "metrics.jsonl").read_text()
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "state.json").unlink()
    with pytest.raises(ValueError, match=r"verifies \(step-00000002: state.json is missing\); restore one, or delete"):
        train_tiny(tmp_path, max_steps=2)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_run_killed_before_its_first_checkpoint_starts_over(whole: Path, tmp_path: Path) -> None:
    def kill(step: int) -> None:
        if step == 2:
            raise Killed

    with pytest.raises(Killed):
        train_tiny(tmp_path, before_step=kill)
    assert len(metrics(tmp_path)) > 0
    train_tiny(tmp_path)
    assert [event["event"] for event in events(tmp_path)].count("start") == 2
    assert TinyWork.comparable(tmp_path) == TinyWork.comparable(whole)


def test_a_finished_run_is_finished(whole: Path, tmp_path: Path) -> None:
    first = train_tiny(tmp_path)
    lines = len(metrics(tmp_path))
    second = train_tiny(tmp_path)
    assert (second.status, second.steps, second.tokens) == ("finished", first.steps, first.tokens)
    assert second.metrics["loss"] == first.metrics["loss"] and second.best == tmp_path / "best" / "model.safetensors"
    assert len(metrics(tmp_path)) == lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_stops_and_the_run_resumes_exactly(whole: Path, tmp_path: Path, number: int) -> None:
    def tell(step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    outcome = train_tiny(tmp_path, before_step=tell)
    assert (outcome.status, outcome.steps) == ("stopped", 2)
    assert signal.getsignal(number) is before
    assert (tmp_path / "checkpoints" / "step-00000002").is_dir()
    assert events(tmp_path)[-1]["event"] == "stop"
    assert train_tiny(tmp_path).status == "finished"
    assert TinyWork.comparable(tmp_path) == TinyWork.comparable(whole)
    assert same_weights(tmp_path, whole)


def test_a_signal_during_a_skipped_step_saves_too(whole: Path, tmp_path: Path) -> None:
    def tell(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = train_tiny(tmp_path, before_step=tell)
    assert (outcome.status, outcome.steps, outcome.skipped) == ("stopped", 4, 1)
    train_tiny(tmp_path)
    assert TinyWork.comparable(tmp_path) == TinyWork.comparable(whole)


def test_checkpoints_wait_for_the_works_boundary(tmp_path: Path) -> None:
    train_tiny(tmp_path, boundary=2, save_every=1, max_steps=3, keep=9)
    # Positions 1, 2, 3 after each step: only 2 is a boundary; the last step is saved in any case.
    assert [event["step"] for event in events(tmp_path) if event["event"] == "checkpoint"] == [2, 3]


def test_divergence_leaves_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_tiny.loss", lambda module, batch: (module(batch).sum() * float("nan"), {}))
    with pytest.raises(TrainingDiverged):
        train_tiny(tmp_path)
    assert events(tmp_path)[-1]["event"] == "error" and "TrainingDiverged" in events(tmp_path)[-1]["reason"]


def failing_saves(monkeypatch: pytest.MonkeyPatch, *, first: int, last: int) -> None:
    real, calls = loop.rng_state, 0

    def full() -> dict:
        nonlocal calls
        calls += 1
        if first <= calls <= last:
            raise OSError(28, "No space left on device")
        return real()

    monkeypatch.setattr(loop, "rng_state", full)


def test_a_failed_save_is_survived_and_tried_again_after_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_saves(monkeypatch, first=1, last=2)
    assert train_tiny(tmp_path).status == "finished"
    found = [(event["event"], event["step"]) for event in events(tmp_path) if event["event"].startswith("checkpoint")]
    assert found == [("checkpoint_failed", 3), ("checkpoint_failed", 4), ("checkpoint", 4)] + [
        ("checkpoint", 6),
        ("checkpoint", 8),
    ]


def test_saves_that_keep_failing_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_saves(monkeypatch, first=2, last=99)
    with pytest.raises(SaveFailed, match="No space left"):
        train_tiny(tmp_path, save_every=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002"]
