"""Launching: argument lists, what an exit code means, and signals that reach the ranks."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sail_train import train
from sail_train.job import state
from sail_train.job.compose import Configs
from sail_train.job.config import LauncherConfig
from sail_train.job.job import Job, resolve
from sail_train.job.overrides import parse_tokens
from sail_train.job.state import Conduct
from sail_train.recipe import launcher
from sail_train.recipe.launcher import Call, launch, sbatch_command, srun_command, submit, torchrun_command
from sail_train.recipe.runner import run_recipe

pytestmark = pytest.mark.usefixtures("workplace")

RANKS = """
import signal, subprocess, sys, time
child = (
    "import signal, sys, time\\n"
    "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\\n"
    "open(sys.argv[1], 'w').close()\\n"
    "time.sleep(60)\\n"
)
rank = subprocess.Popen([sys.executable, "-c", child, sys.argv[1]], start_new_session=True)
sys.exit(1 if rank.wait() else 0)
"""
"""A parent as torchrun is: it starts a rank in a session of its own and fails when the rank ends with any error."""


def job(configs: Configs, name: str = "again", *tokens: str) -> Job:
    return resolve(configs, parse_tokens(["recipe=two", f"stage={name}", *tokens]))


def test_torchrun_is_called_with_what_was_asked_for(configs: Configs) -> None:
    command = torchrun_command(LauncherConfig(nproc=4))
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"] and "--nproc-per-node=4" in command
    call = Call(tokens=("train.max_steps=2",), options=("--ignore-code",))
    assert call.arguments("two", job(configs)) == ["recipe=two", "stage=again", "train.max_steps=2", "--ignore-code"]


def test_srun_starts_one_torchrun_a_node() -> None:
    command = srun_command(LauncherConfig(kind="srun", nodes=3, nproc=8))
    assert command[:3] == ["srun", "--nodes=3", "--ntasks-per-node=1"]
    assert os.access(command[-1], os.X_OK), "the script that srun starts"


def test_a_batch_job_waits_for_those_it_reads_and_for_its_like(configs: Configs) -> None:
    one = job(configs)
    one.launcher = LauncherConfig(
        kind="slurm", nodes=2, nproc=8, gpus_per_node=8, time="1:00:00", partition="big", extra=["--exclusive"]
    )
    command = sbatch_command(one, after=["11", "12"])
    assert command[0] == "sbatch" and command[-1].endswith("scripts/slurm/train.sbatch")
    for option in (
        "--parsable", "--job-name=two-again", "--nodes=2", "--dependency=afterok:11:12,singleton", "--exclusive",
        "--gpus-per-node=8", "--time=1:00:00", "--partition=big", "--kill-on-invalid-dep=yes",
    ):  # fmt: skip
        assert option in command
    assert not [option for option in command if option.startswith("--account")]
    assert "--dependency=singleton" in sbatch_command(one, after=[])


@pytest.fixture
def sbatch(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queue that numbers its jobs and writes down what it was given."""
    script = workplace / "bin" / "sbatch"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/sh\necho "$SAIL_NPROC $*" >> queued\n'
        'case "$*" in *refuse*) echo "no such partition" >&2; exit 1;; esac\nwc -l < queued\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return workplace / "queued"


SLURM = ("launcher.kind=slurm", "launcher.nproc=4")


def test_a_recipe_is_queued_entry_by_entry_with_its_dependencies(configs: Configs, loop: Any, sbatch: Path) -> None:
    (configs.folders[0] / "recipe" / "two.yaml").write_text(
        "entries:\n  - {name: a, stage: first}\n  - {name: b, stage: second, parents: {model: a}}\n"
        "  - {name: c, stage: second, parents: {model: a}, seed_offset: 1}\n"
        "  - {name: d, stage: second, parents: {vision: b, language: c}}\n"
    )
    request = parse_tokens(["recipe=two", *SLURM])
    assert run_recipe(configs, request, Call(tokens=SLURM), conduct=Conduct()) == 0
    lines = sbatch.read_text().splitlines()
    assert [line.split("--dependency=")[1].split()[0] for line in lines] == [
        "singleton", "afterok:1,singleton", "afterok:1,singleton", "afterok:2:3,singleton",
    ]  # fmt: skip
    assert all(line.startswith("4 ") and "recipe=two" in line for line in lines)
    assert loop.trained == []


def test_what_is_finished_is_not_queued(configs: Configs, loop: Any, sbatch: Path) -> None:
    train.run(job(configs, "first", *SLURM), Conduct())
    jobs = [job(configs, "first", *SLURM), job(configs, "again", *SLURM)]
    assert submit(jobs, "two", Call(tokens=SLURM), Conduct()) == {"again": "1"}
    assert "--dependency=singleton" in sbatch.read_text()


def test_a_queue_that_refuses_is_quoted(
    configs: Configs, loop: Any, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(configs, "first", *SLURM)
    with pytest.raises(ValueError, match="sbatch refused first: no such partition"):
        submit([one], "two", Call(tokens=("refuse=1",)), Conduct())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="there is no sbatch here"):
        submit([one], "two", Call(tokens=()), Conduct())


@pytest.fixture
def ranks(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchrun replaced by a parent with one rank; the file tells that the rank listens."""
    script = workplace / "ranks.py"
    script.write_text(RANKS)
    listening = workplace / "listening"
    monkeypatch.setattr(launcher, "torchrun_command", lambda config: [sys.executable, str(script), str(listening)])
    return listening


def interrupt_when(path: Path, *, times: int = 1) -> threading.Thread:
    """Sends this process Ctrl-C once `path` is there."""

    def send() -> None:
        while not path.exists():
            time.sleep(0.02)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def several(configs: Configs) -> Job:
    one = job(configs, "first", "launcher.nproc=2")
    one.run_dir.mkdir(parents=True)
    return one


def test_ctrl_c_reaches_the_ranks_as_a_request_to_save(
    configs: Configs, ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = several(configs)
    thread = interrupt_when(ranks)
    handler = signal.getsignal(signal.SIGUSR1)
    began = time.monotonic()
    # the rank would sleep for a minute; that it saved is told by outcome.json, torchrun's own code says nothing
    monkeypatch.setattr(state, "outcome", lambda run_dir: {"status": "stopped"} if ranks.exists() else None)
    assert launch(one, "two", Call(tokens=()), Conduct()) == train.EXIT_SAVED
    thread.join()
    assert time.monotonic() - began < 30
    assert signal.getsignal(signal.SIGUSR1) == handler


def test_ranks_that_end_without_a_word_have_failed(configs: Configs, ranks: Path) -> None:
    thread = interrupt_when(ranks)
    assert launch(several(configs), "two", Call(tokens=()), Conduct()) == launcher.EXIT_FAILED
    thread.join()


def test_an_earlier_end_is_not_taken_for_this_one(configs: Configs, ranks: Path) -> None:
    one = several(configs)
    (one.run_dir / "outcome.json").write_text('{"status": "stopped"}')
    thread = interrupt_when(ranks)
    assert launch(one, "two", Call(tokens=()), Conduct()) == launcher.EXIT_FAILED
    thread.join()


def test_the_third_ctrl_c_ends_ranks_that_do_not_listen(
    configs: Configs, ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = RANKS.replace("lambda *_: sys.exit(75)", "signal.SIG_IGN")
    (ranks.parent / "ranks.py").write_text(deaf)
    thread = interrupt_when(ranks, times=3)
    began = time.monotonic()
    assert launch(several(configs), "two", Call(tokens=()), Conduct()) == launcher.EXIT_FAILED
    thread.join()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("status", "returned", "gate", "code"),
    [
        ("finished", 0, False, 0),
        ("finished", 1, True, train.EXIT_GATE),
        ("finished", 1, False, launcher.EXIT_FAILED),
        ("stopped", 1, False, train.EXIT_SAVED),
        (None, 1, False, launcher.EXIT_FAILED),
    ],
)
def test_what_the_ranks_left_says_how_they_ended(
    configs: Configs, monkeypatch: pytest.MonkeyPatch, status: str | None, returned: int, gate: bool, code: int
) -> None:
    one = job(configs, "first" if gate else "again")
    monkeypatch.setattr(state, "outcome", lambda run_dir: {"status": status} if status else None)
    assert launcher._meaning(one, returned) == code


def test_a_finished_entry_starts_no_ranks(configs: Configs, loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train.run(job(configs, "first"), Conduct()) == 0
    monkeypatch.setattr(launcher, "_wait", lambda *_, **__: pytest.fail("nothing is to be trained"))
    assert launch(job(configs, "first", "launcher.nproc=2"), "two", Call(tokens=()), Conduct()) == 0


def test_a_refused_entry_starts_no_ranks(
    configs: Configs, loop: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(job(configs, "first"), Conduct())
    monkeypatch.setattr(launcher, "_wait", lambda *_, **__: pytest.fail("nothing is to be trained"))
    changed = job(configs, "first", "launcher.nproc=2", "seed=3")
    assert launch(changed, "two", Call(tokens=()), Conduct()) == train.EXIT_USAGE
    assert "seed: 0 -> 3" in capsys.readouterr().err
