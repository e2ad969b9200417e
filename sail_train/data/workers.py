"""Processes that read a rank's rows for it: each has some of its streams, and hands over one buffer per row.

The trainer's side of `sail_train.data.worker`. A worker is a fresh interpreter (nothing of the trainer's is forked
into it) that gets JSON through a socket and writes rows into a few slots of memory shared with the trainer, which
bounds how far it reads ahead. Rows are taken in the order of their numbers, so that they do not depend on the workers;
each brings its stream's position. A worker that dies is named and started again at the positions of the rows that
were taken last; one that dies twice without a row in between stops the run. What a worker raises is raised here.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from sail_train.config import to_mapping
from sail_train.data.config import DataConfig
from sail_train.data.interleave import SETTINGS, budget_of
from sail_train.data.quarantine import TooManyBadSamples, carried
from sail_train.data.reader import Reader
from sail_train.data.ready import BYTES_PER_TOKEN, ReadyRow, described

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

log = logging.getLogger(__name__)

SLOTS = 3
"""Rows that a worker may have finished before they are wanted."""
PATIENCE = 60.0
"""Seconds after which a wait for a worker is told."""
GRACE = 5.0
"""Seconds in which a worker ends by itself when it is not needed any longer."""


class WorkerDied(RuntimeError):
    """A worker process ended and cannot be replaced."""


class Workers:
    """A rank's rows, read by `config.workers` processes. Close it.

    The same rows, positions and errors as a `Reader` of the same streams.
    """

    def __init__(self, config: DataConfig, processor: SailVLProcessor, *, seed: int, numbers: Sequence[int]) -> None:
        if config.workers > len(numbers):
            raise ValueError(
                f"data.workers={config.workers} is more than the {len(numbers)} streams of a rank "
                f"(num_streams={config.num_streams}); use at most {len(numbers)}, or more streams"
            )
        reader = Reader(config, processor, seed=seed, numbers=numbers)
        reader.close()
        self.settings, self.asked, self.shards = reader.settings, reader.asked, reader.shards
        self._positions = reader.positions()
        self._numbers = sorted(numbers)
        self._num_streams = config.num_streams
        budget = budget_of(config)
        self._budget, self._ledgers = budget, {number: budget.ledger() for number in self._numbers}
        self._reader = reader
        """Reads nothing: it knows where the streams begin, and how a position is checked."""
        self._generation = 0
        self._folder = tempfile.mkdtemp(prefix="sail-train-processor-")
        processor.save_pretrained(self._folder)
        slot_bytes = BYTES_PER_TOKEN * config.seq_length + config.max_patches * processor.image_spec.patch_dim
        start = {
            "config": to_mapping(config),
            "processor": self._folder,
            "seed": seed,
            "settings": self.settings,
            "slots": SLOTS,
            "slot_bytes": slot_bytes,
        }
        shares = [self._numbers[place :: config.workers] for place in range(config.workers)]
        self._workers = [Process(place, {**start, "numbers": share}) for place, share in enumerate(shares)]
        self._wanted = False

    @property
    def changes(self) -> list[str]:
        """See `Interleave.changes`."""
        return self._reader.changes

    def positions(self) -> dict[str, Any]:
        """JSON: where the streams stand after the last row."""
        return dict(self._positions)

    def load_state(self, positions: Mapping[str, Any]) -> None:
        """Goes on after `positions`, which may hold other streams too."""
        self._reader.check(positions)
        # the settings are ours: those of a mixture that changed when asked go on as they are now
        self._positions = {SETTINGS: self.settings, **{name: positions[name] for name in map(str, self._numbers)}}
        for number, ledger in self._ledgers.items():
            ledger.load_state(self._positions[str(number)])
        self._wanted = False

    def next_ready(self) -> ReadyRow:
        """The next row.

        Raises:
            TooManyBadSamples: a source is over its budget.
            WorkerDied: a worker died again before it had read another row.
        """
        if not self._wanted:
            self._generation += 1
            for worker in self._workers:
                worker.go(self._positions, self._generation)
            self._wanted = True
        taken = sum(self._positions[str(number)]["taken"] for number in self._numbers)
        place = taken % len(self._numbers) % len(self._workers)
        row = self._row_of(self._workers[place])
        number = row.index % self._num_streams
        assert number == self._numbers[taken % len(self._numbers)], (row.index, taken)
        self._positions[str(number)] = row.position
        self._count(number, row)
        return row

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _row_of(self, worker: Process) -> ReadyRow:
        while True:
            try:
                row = worker.row(self._generation)
            except (EOFError, OSError) as error:
                worker.start_again(error)
                worker.go(self._positions, self._generation)
                continue
            return row

    def _count(self, number: int, row: ReadyRow) -> None:
        """What the reading rank's budget would have said."""
        self._ledgers[number].load_state(row.position)
        for record in row.quarantined:
            self._budget.last.append(f"{record['shard']} {record['key']!r}: {record['reason']}: {record['detail']}")
        with carried(row.quarantined):
            for source in sorted({record["source"] for record in row.quarantined}):
                self._budget.check(source, 0)


class Process:
    """One worker process, its socket and the memory that it shares with the trainer."""

    def __init__(self, place: int, start: Mapping[str, Any]) -> None:
        self._place = place
        self._start = start
        self._fruitless = 0
        """Deaths since the last row."""
        self._launch()

    @property
    def name(self) -> str:
        rank = os.environ.get("RANK", "0")
        return f"data worker {self._place} of rank {rank} (process {self.process.pid})"

    def go(self, positions: Mapping[str, Any], generation: int) -> None:
        """Rows from `positions` on; `generation` tells them from those of before."""
        wanted = {str(number): positions[str(number)] for number in self._start["numbers"]}
        self._tell({"positions": {SETTINGS: positions[SETTINGS], **wanted}, "generation": generation})

    def row(self, generation: int) -> ReadyRow:
        """The next row of `generation`.

        Raises:
            EOFError, ConnectionError: the process is gone.
        """
        while True:
            message = self._receive()
            if "error" in message:
                raise Raised(self.name, message["error"]).error()
            if "row" not in message:
                continue
            # copied at once: the worker has few slots, and goes on with a free one
            buffer = self._slots[message["slot"], : message["bytes"]].copy()
            self._tell({"free": message["slot"]})
            if message["generation"] == generation:
                self._fruitless = 0
                return described(message["row"], buffer)

    def start_again(self, error: Exception) -> None:
        """Replaces a process that died; WorkerDied if that happened before, without a row in between."""
        try:
            code = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            raise error from None  # it lives: what failed is something else
        self._fruitless += 1
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if self._fruitless > 1:
            raise WorkerDied(
                f"{self.name} {ended}, as the one before it did, and neither read a row; if it was SIGKILL, look at "
                f"the machine's memory (fewer data.workers need less), else at what it wrote to stderr"
            ) from error
        log.warning("%s %s; another one takes its place", self.name, ended)
        self.close()
        self._launch()

    def close(self) -> None:
        """The process ends when its socket is closed, or is killed."""
        self._connection.close()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        memory = _shared_memory(self._start["slots"] * self._start["slot_bytes"])
        self._slots = np.frombuffer(mmap.mmap(memory, 0), np.uint8).reshape(self._start["slots"], -1)
        descriptors = (theirs.fileno(), memory)
        command = [sys.executable, "-m", "sail_train.data.worker", *map(str, descriptors), str(os.getpid())]
        # a session of its own: what a terminal sends to the trainer's must not end the worker before it
        self.process = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL, start_new_session=True)
        theirs.close()
        os.close(memory)
        self._connection = Connection(ours.detach())
        self._tell(dict(self._start))

    def _tell(self, message: Mapping[str, Any]) -> None:
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError:
            pass  # it is gone: the next `row` finds that out

    def _receive(self) -> dict[str, Any]:
        while not self._connection.poll(PATIENCE):
            log.warning("%s has read no row for %g s", self.name, PATIENCE)
        message: dict[str, Any] = json.loads(self._connection.recv_bytes())
        return message


class Raised:
    """What a worker raised, as it is raised here."""

    def __init__(self, worker: str, told: Mapping[str, Any]) -> None:
        self._worker = worker
        self._told = told

    def error(self) -> Exception:
        """The same kind of exception where it is one that a reader raises, with the worker's traceback as a note."""
        told = self._told
        error: Exception
        if told["type"] == TooManyBadSamples.__name__:
            error = TooManyBadSamples(told["message"], told["records"])
        elif told["type"] == "ValueError":
            error = ValueError(told["message"])
        else:
            error = RuntimeError(f"{self._worker} failed: {told['type']}: {told['message']} {told['path'] or ''}")
        error.add_note(f"in {self._worker}:\n{told['trace']}")
        return error


def _shared_memory(size: int) -> int:
    """A descriptor of memory that has no name: nothing is left behind, however the processes end."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("sail-train-rows")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
