"""Processes that compare mathematics, with a deadline for each comparison.

`MathPool.ask` -> a free worker -> a JSON line to `math_worker.py` -> its reply, or SIGKILL and a new process when the
deadline passes. JSON both ways: nothing that crosses the pipe is unpickled or evaluated here.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import select
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from sail_train.types import Score

WORKER = Path(__file__).with_name("math_worker.py")
START_SECONDS = 120.0
"""For importing sympy on a busy machine."""
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""Of the environment: a process that reads untrusted text gets no keys."""


class Overrun(Exception):
    """A worker did not answer in time, or died; it has been killed."""


class MathWorker:
    """One process, started when first asked."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The reply to `request`. Raises Overrun after `timeout` seconds; the time to start does not count."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        return self._exchange((json.dumps(request) + "\n").encode(), timeout)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _start(self) -> None:
        self.kill()
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._exchange(b"", START_SECONDS)

    def _exchange(self, line: bytes, timeout: float) -> dict[str, Any]:
        assert self.process is not None and self.process.stdin is not None and self.process.stdout is not None
        deadline, received = time.monotonic() + timeout, b""
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
            while not received.endswith(b"\n"):
                ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
                chunk = os.read(self.process.stdout.fileno(), 65536) if ready else b""
                if not chunk:
                    raise Overrun("no answer in time" if not ready else "the process died")
                received += chunk
        except (Overrun, OSError) as error:
            self.kill()
            raise Overrun(str(error)) from None
        return json.loads(received)


class MathPool:
    """Up to `workers` comparisons at once; safe to ask from several threads."""

    def __init__(self, workers: int) -> None:
        self.workers = [MathWorker() for _ in range(workers)]
        self.free: queue.SimpleQueue[MathWorker] = queue.SimpleQueue()
        for worker in self.workers:
            self.free.put(worker)

    def ask(self, readings: dict[str, list[str]], *, timeout: float) -> Score:
        """1 or 0; "timeout" after `timeout` seconds, "error" for a truth that cannot be parsed."""
        worker = self.free.get()
        try:
            reply = worker.ask(readings, timeout)
        except Overrun as error:
            return Score(value=0.0, status="timeout", detail=f"math: {error}")
        finally:
            self.free.put(worker)
        if "error" in reply:
            return Score(value=0.0, status="error", detail=f"math: {reply['error']}")
        return Score(value=float(reply["value"]))

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()


@cache
def shared_pool(workers: int) -> MathPool:
    """The pool of this process, closed when it ends."""
    pool = MathPool(workers)
    atexit.register(pool.close)
    return pool
