"""Contenders that take turns: each in a process of its own, stopped while it is another's turn.

`play` starts them, drops a round of warm-up, and lets them run A B C, C B A, A B C ..., so that whatever else the
machine does falls on all of them; a contender answers a line on its standard input by one of JSON (`serve`). Being
stopped, loaders that read ahead cannot do so at the cost of others.
Only the standard library is imported: peers are run by the Python of an environment of their own.
"""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Round = dict[str, Any]
"""What a contender tells of one round: "seconds", "cpu" (seconds of all its processes), "samples", and more."""

QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
         "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
         "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
"""One thread each: the machine's cores are shared by the processes that are compared."""


WAITING = 12
"""Batches taken before a round is timed: more than any loader here has ready (ours 3 for each of two workers and one
more, torch's 2 for each)."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A script of this folder, the Python that runs it, and what it is asked to do."""

    name: str
    python: str
    script: str
    task: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        here = Path(__file__).resolve().parent
        return [self.python, str(here / self.script), self.task, json.dumps(dict(self.options))]


class Running:
    """A contender's process, stopped unless it is its turn."""

    def __init__(self, contender: Contender) -> None:
        self.name = contender.name
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            contender.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            start_new_session=True, env=os.environ | QUIET,
        )  # fmt: skip
        self.about: Round = self._answer()
        self._signal(signal.SIGSTOP)

    def turn(self) -> Round:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        told = self._answer()
        self._signal(signal.SIGSTOP)
        return told

    def close(self) -> None:
        """Ends the process and those that it started."""
        self._signal(signal.SIGKILL)  # parents first, so that none starts another in place of one that died
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()
        self._log.close()

    def _answer(self) -> Round:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"{self.name} ended:\n{self._log.read()[-4000:]}")
        return dict(json.loads(line))

    def _signal(self, number: int) -> None:
        """To the process, then to all that it started: once it is stopped it starts no more."""
        for pid in (self._process.pid, *descendants(self._process.pid)):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass


def play(contenders: Sequence[Contender], rounds: int, *, warm_up: int = 1) -> dict[str, list[Round]]:
    """What each told of each round but the first `warm_up`, by name."""
    running: list[Running] = []
    try:
        for contender in contenders:
            running.append(Running(contender))
        told: dict[str, list[Round]] = {one.name: [] for one in running}
        for number in range(rounds + warm_up):
            for one in running if number % 2 == 0 else running[::-1]:
                told[one.name].append(one.turn())
        return {name: each[warm_up:] for name, each in told.items()}
    finally:
        for one in running:
            one.close()


def serve(tasks: Mapping[str, Callable[..., Callable[[], Round]]]) -> None:
    """The contender's side: makes the task that the command names, then does a round for every line that comes."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(told: Round) -> None:
        channel.write(json.dumps(told) + "\n")
        channel.flush()

    run = tasks[sys.argv[1]](**json.loads(sys.argv[2]))
    say({})
    for _ in sys.stdin:
        say(run())
    channel.close()
    os._exit(0)  # loaders of some peers wait for their workers for ever


class Clock:
    """Wall clock and CPU time since it was made, of this process and those that it started."""

    def __init__(self) -> None:
        self._others = _cpu_of_others()
        self._seconds, self._own = time.perf_counter(), time.process_time()

    def told(self, samples: int, **more: Any) -> Round:
        """The round so far."""
        seconds, own = time.perf_counter() - self._seconds, time.process_time() - self._own
        # last, since looking at all processes takes milliseconds
        return {"seconds": seconds, "cpu": own + _cpu_of_others() - self._others, "samples": samples, **more}


def _cpu_of_others() -> float:
    """CPU seconds of the processes that this one started."""
    table = _processes()
    ticks = sum(int(table[pid][11]) + int(table[pid][12]) for pid in descendants(os.getpid(), table))
    return ticks / os.sysconf("SC_CLK_TCK")


def descendants(pid: int, table: Mapping[int, Sequence[str]] | None = None) -> list[int]:
    """The processes that `pid` started, and theirs, whatever session or group they are in (our workers have their
    own)."""
    table = _processes() if table is None else table
    found = [pid]
    for parent in found:  # grows on the way
        found += [child for child, fields in table.items() if int(fields[1]) == parent]
    return found[1:]


def _processes() -> dict[int, list[str]]:
    """The fields of /proc/PID/stat from the state on, by process."""
    found = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            content = Path(path).read_text()
        except OSError:  # it has ended
            continue
        found[int(path.split("/")[2])] = content[content.rindex(")") + 2 :].split()
    return found
