"""How the ranks of one entry are started: in this process, by torchrun, by srun, or later by Slurm's queue.

Commands are argument lists, never a shell's text. A signal that asks this process to stop is passed on to the ranks
as SIGUSR1, upon which they save after the step and end; torchrun itself is made deaf to it, since it would kill
them instead.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from sail_train import train
from sail_train.job import state
from sail_train.job.config import LauncherConfig
from sail_train.job.job import Job
from sail_train.job.state import FINISHED, Conduct

EXIT_FAILED = 1
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "slurm"
IMPATIENT = 3
"""So many requests to stop, and the ranks are ended without saving."""
AGAIN = 2.0
"""Seconds after which a request to stop is passed on again: ranks that are still importing do not hear the first."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a process of its own must be told to train the same entries: the command line, as given."""

    tokens: tuple[str, ...]
    """Without recipe=, stage= and force=."""
    options: tuple[str, ...] = ()
    """Such as --config-dir."""

    def arguments(self, recipe: str, job: Job) -> list[str]:
        return [f"recipe={recipe}", f"stage={job.name}", *self.tokens, *self.options]


def launch(job: Job, recipe: str, call: Call, conduct: Conduct) -> int:
    """Trains one entry, here or in processes of its own; the exit code is that of `sail_train.train`."""
    launcher = job.launcher
    if launcher.kind == "local" and launcher.nproc == 1:
        return train.run(job, conduct)
    try:
        with state.locked(job.run_dir):
            wanted = state.decide(job, conduct)
    except ValueError as error:
        return train.refuse(error)
    if not wanted:
        return train.check_gate(job)
    # what an earlier process said of its end must not be taken for what these will say
    (job.run_dir / "outcome.json").unlink(missing_ok=True)
    through_srun = launcher.kind == "srun"
    command = srun_command(launcher) if through_srun else torchrun_command(launcher)
    returned = _wait(command + call.arguments(recipe, job), children=not through_srun)
    return _meaning(job, returned)


def torchrun_command(launcher: LauncherConfig) -> list[str]:
    """One node: the ranks meet on a free port of this machine."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={launcher.nproc}",
        "-m", "sail_train.train",
    ]  # fmt: skip


def srun_command(launcher: LauncherConfig) -> list[str]:
    """All nodes of the allocation: one torchrun each, which meet on the first."""
    script = SCRIPTS / "ranks"
    return ["srun", f"--nodes={launcher.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1", str(script)]


def sbatch_command(job: Job, *, after: Sequence[str]) -> list[str]:
    """One batch job, which waits until the jobs `after` have succeeded, and until no other trains the same run."""
    launcher = job.launcher
    conditions = [f"afterok:{':'.join(after)}"] if after else []
    options = [
        "sbatch", "--parsable", f"--job-name={job.recipe}-{job.name}", f"--nodes={launcher.nodes}",
        "--ntasks-per-node=1", "--kill-on-invalid-dep=yes", f"--dependency={','.join([*conditions, 'singleton'])}",
        f"--output={job.run_dir}/slurm-%j.log", "--open-mode=append",
    ]  # fmt: skip
    if launcher.gpus_per_node:
        options.append(f"--gpus-per-node={launcher.gpus_per_node}")
    options += [f"--{name}={value}" for name in ("time", "partition", "account") if (value := vars(launcher)[name])]
    return [*options, *launcher.extra, str(SCRIPTS / "train.sbatch")]


def submit(jobs: Sequence[Job], recipe: str, call: Call, conduct: Conduct) -> dict[str, str]:
    """Queues what is not finished; Slurm's job number of each entry that was queued."""
    queued: dict[str, str] = {}
    for job in jobs:
        waits = [queued[name] for name in job.needs if name in queued]
        if not waits and not state.decide(job, conduct):
            continue
        job.run_dir.mkdir(parents=True, exist_ok=True)
        command = sbatch_command(job, after=waits) + call.arguments(recipe, job)
        environment = os.environ | {"SAIL_NPROC": str(job.launcher.nproc), "SAIL_PYTHON": sys.executable}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        except FileNotFoundError:
            raise ValueError("launcher=slurm: there is no sbatch here; run it on a login node of the cluster") from None
        except subprocess.CalledProcessError as error:
            raise ValueError(f"launcher=slurm: sbatch refused {job.name}: {error.stderr.strip()}") from None
        queued[job.name] = done.stdout.strip().partition(";")[0]
    return queued


def _meaning(job: Job, returned: int) -> int:
    """torchrun ends with 1 however its ranks ended; what happened stands in outcome.json."""
    status = (state.outcome(job.run_dir) or {}).get("status")
    if status == FINISHED and returned == 0:
        return 0
    if status == FINISHED:
        return train.EXIT_GATE if job.gate is not None else EXIT_FAILED
    return train.EXIT_SAVED if status == "stopped" else EXIT_FAILED


def _wait(command: list[str], *, children: bool) -> int:
    """Runs a command to its end and passes requests to stop on, to its children or to itself."""
    with _asked_to_stop() as asked:
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN) if children else None
        process = subprocess.Popen(command, start_new_session=True)
        if children:
            signal.signal(signal.SIGUSR1, before)
        told = 0.0
        while True:
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if len(asked) >= IMPATIENT:
                    _end(process)
                elif asked and time.monotonic() - told >= AGAIN:
                    told = time.monotonic()
                    _pass_on(process, children=children)


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """The signals that came while inside."""
    asked: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _pass_on(process: subprocess.Popen[bytes], *, children: bool) -> None:
    try:
        parent = psutil.Process(process.pid)
        for target in parent.children() if children else [parent]:
            target.send_signal(signal.SIGUSR1)
    except psutil.NoSuchProcess:
        pass  # it ended meanwhile, which is what was asked for


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        parent = psutil.Process(process.pid)
        for target in [*parent.children(recursive=True), parent]:
            target.kill()
    except psutil.NoSuchProcess:
        pass
