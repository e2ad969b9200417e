"""Killed and started again, a run gives the same files to the last bit: supervised and RL, at a bad moment, by signal.

The run that dies is a process of its own; it is continued, and the run that nothing happened to is made, in this one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from loops_tiny import MIXED, RL, SUPERVISED, command, comparable, events, lines, start, weights

from sail_train.engine.signals import EXIT_SAVED

PATIENCE = 300
"""Seconds until a process must have got somewhere: imports take long on a busy machine."""

SPOILT = ("data.sources.spoilt.shards=${data_dir}/spoilt/*.tar", "data.sources.spoilt.max_bad=1000")
"""A source with bad samples, so that quarantine.jsonl has lines to be repeated or lost."""

TUNED = (
    *SUPERVISED, *MIXED, *SPOILT, "train.max_steps=40", "train.save_every=6", "train.valid_every=9",
    "schedule.name=cosine",
    "valid.text.shards=${data_dir}/eval/text_plain/*.tar", "eval.modes={read: [greedy, t1]}", "data.prefetch=2",
)  # fmt: skip

ROLLED = (
    *RL, *SPOILT, "train.max_steps=24", "train.save_every=4", "rl.mini_batches=2", "rl.epochs=2", "rl.kl_coef=0.01",
    "eval.modes={basic: [t1]}",
)  # fmt: skip
"""Four updates a rollout batch, and a reference policy that no checkpoint holds."""
UPDATES = 4


@contextlib.contextmanager
def running(data: Path, *tokens: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process of its own, which never outlives the test."""
    process = subprocess.Popen(command(data, *tokens), stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    """Stops the process (it stands still, as for a debugger) at a moment when `ready` holds."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, f"it ended too early, with {process.returncode}"
        if ready():
            process.send_signal(signal.SIGSTOP)
            if ready():  # still so, now that it stands
                return
            process.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    raise AssertionError("it got nowhere")


def kill(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    wait_for(process, ready)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def assert_same(run: Path, whole: Path) -> None:
    """Every record, the model and the evaluation."""
    assert comparable(run) == comparable(whole)
    expected = weights(whole)
    assert all(torch.equal(expected[name], weight) for name, weight in weights(run).items())
    assert (run / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()


@pytest.fixture(scope="module")
def tuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "tuned"
    assert start(data, *TUNED, f"run_dir={run}") == 0
    return run


@pytest.fixture(scope="module")
def rolled(data: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "rolled"
    assert start(data, *ROLLED, f"parent={trained}", f"run_dir={run}") == 0
    return run


def test_told_to_stop_and_then_killed_a_supervised_run_goes_on_exactly(data: Path, tuned: Path, tmp_path: Path) -> None:
    run = tmp_path / "tuned"
    with running(data, *TUNED, f"run_dir={run}") as process:
        wait_for(process, lambda: steps_done(run) > 8)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=PATIENCE) == EXIT_SAVED == 75
    (stop,) = events(run, "stop")
    assert 8 <= stop["step"] < 40 and (run / "checkpoints" / f"step-{stop['step']:08d}" / "manifest.json").is_file()
    with running(data, *TUNED, f"run_dir={run}") as process:
        # two validations, and steps after the last checkpoint
        kill(process, lambda: steps_done(run) > stop["step"] + 11 and steps_done(run) % 6 in (2, 3, 4))
    reached = steps_done(run)
    assert reached < steps_done(tuned) and not (run / "outcome.json").exists()
    assert start(data, *TUNED, f"run_dir={run}") == 0
    first, second = events(run, "resume")
    assert first["checkpoint"] == f"step-{stop['step']:08d}"
    assert stop["step"] < int(second["checkpoint"].removeprefix("step-")) < reached
    assert_same(run, tuned)


def test_killed_amid_a_rollout_batch_an_rl_run_goes_on_exactly(
    data: Path, trained: Path, rolled: Path, tmp_path: Path
) -> None:
    run, tokens = tmp_path / "rolled", (*ROLLED, f"parent={trained}")
    with running(data, *tokens, f"run_dir={run}") as process:
        kill(process, lambda: steps_done(run) > 2 * UPDATES and steps_done(run) % UPDATES in (1, 2, 3))
    assert steps_done(run) % UPDATES and len(lines(run, "samples")) < len(lines(rolled, "samples"))
    assert start(data, *tokens, f"run_dir={run}") == 0
    (resume,) = events(run, "resume")
    assert int(resume["checkpoint"].removeprefix("step-")) % UPDATES == 0
    assert_same(run, rolled)


def test_the_whole_runs_have_what_the_comparison_is_about(tuned: Path, rolled: Path) -> None:
    assert len(lines(tuned)) == 40 + 4 and len([line for line in lines(tuned) if "valid/loss" in line]) == 4
    assert {record["mode"] for record in lines(tuned, "samples")} == {"greedy", "t1"}
    assert len(lines(rolled)) == 24 and lines(rolled)[-1]["update/kl_ref"] > 0
    assert {record["rollout_batch"] for record in lines(rolled, "samples") if "phase" in record} == set(range(6))
    for run in (tuned, rolled):
        assert {record["reason"] for record in lines(run, "quarantine")} == {"bad_messages"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tuned", "rolled"])
def test_killed_at_any_moment_and_again_a_run_ends_the_same(
    data: Path, trained: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """SIGKILL after random times, saving and evaluating included, until a start comes through."""
    whole = request.getfixturevalue(kind)
    tokens = TUNED if kind == "tuned" else (*ROLLED, f"parent={trained}")
    run, draw, kills = tmp_path / kind, random.Random(kind), 0
    for _ in range(40):
        began = steps_done(run) if run.exists() else 0
        with running(data, *tokens, f"run_dir={run}") as process:
            more = draw.randint(0, 7)
            deadline = time.monotonic() + PATIENCE
            while process.poll() is None and time.monotonic() < deadline and steps_done(run) < began + more:
                time.sleep(0.002)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=draw.random() * 0.3)
            if process.poll() is not None:
                assert process.returncode == 0
                break
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
    assert kills >= 3 and (run / "outcome.json").exists()
    assert_same(run, whole)
