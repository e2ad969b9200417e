"""A data worker: `python -m sail_train.data.worker SOCKET MEMORY`, started by `sail_train.data.workers` only.

JSON goes over the socket: first what to read, then, from the worker, one description a row, whose bytes lie in a slot
of the shared memory; from the trainer, slots that it has emptied, and positions to go on from. Nothing is pickled.
The worker ends when the trainer closes the socket or is gone, whatever it is doing. It ignores the signals by which
a terminal or a scheduler ends a whole job: the trainer, which saves first, ends it.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sail_train import dist
from sail_train.config import to_dataclass
from sail_train.data.config import DataConfig
from sail_train.data.reader import Reader
from sail_train.processor.processor import load_processor
from sail_train.types import RunStopped

LEFT_TO_THE_TRAINER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
WATCH_SECONDS = 1.0
"""Between two looks at whether the trainer lives, should the socket not tell."""


class Worker:
    """Reads rows into free slots until the trainer is gone."""

    def __init__(self, connection: Connection, memory: mmap.mmap, start: dict[str, Any]) -> None:
        self._connection = connection
        self._slots = np.frombuffer(memory, np.uint8).reshape(start["slots"], -1)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._wanted: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        """Positions to go on from."""
        self._moved = threading.Event()
        """Whether rows are wanted at all."""
        processor = load_processor(start["processor"])
        config: DataConfig = to_dataclass(DataConfig, start["config"])
        self._reader = Reader(
            config, processor, seed=start["seed"], numbers=start["numbers"], limited=False, settings=start["settings"]
        )
        self._generation = -1
        for slot in range(start["slots"]):
            self._free.put(slot)

    def listen(self, end: Callable[[int], object] = os._exit) -> None:
        """Takes what the trainer sends until it is gone, and ends the process then, whatever else it does."""
        try:
            while True:
                message = json.loads(self._connection.recv_bytes())
                if "free" in message:
                    self._free.put(message["free"])
                else:
                    self._wanted.put(message)
                    self._moved.set()
        except (EOFError, OSError):
            end(0)

    def work(self) -> None:
        """Rows, for ever."""
        self._moved.wait()
        while True:
            slot = self._free.get()
            while not self._wanted.empty():
                wanted = self._wanted.get()
                self._reader.load_state(wanted["positions"])
                self._generation = wanted["generation"]
            row = self._reader.next_ready()
            self._slots[slot, : row.buffer.nbytes] = row.buffer
            kept = {"position": row.position, "quarantined": row.quarantined}
            self.send({"row": row.describe() | kept, "slot": slot, "bytes": row.buffer.nbytes})

    def send(self, message: dict[str, Any]) -> None:
        self._connection.send_bytes(json.dumps({"generation": self._generation, **message}).encode())


def watch_parent(parent: int) -> None:
    """Ends the process soon after the trainer; the socket may be held open by another of its children."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(0)


def told(error: BaseException) -> dict[str, Any]:
    """JSON: an exception, for the trainer to raise."""
    numbered = isinstance(error, OSError)
    return {
        "type": type(error).__name__,
        "message": str(error.strerror or error) if isinstance(error, OSError) else str(error),
        "errno": error.errno if isinstance(error, OSError) else None,
        "path": str(error.filename) if numbered and error.filename else None,  # type: ignore[attr-defined]
        "records": error.records if isinstance(error, RunStopped) else (),
        "trace": "".join(traceback.format_exception(error)),
    }


def main(arguments: list[str]) -> None:
    """The process."""
    for number in LEFT_TO_THE_TRAINER:
        signal.signal(number, signal.SIG_IGN)
    socket, memory, parent = (int(argument) for argument in arguments)
    threading.Thread(target=watch_parent, args=(parent,), daemon=True).start()
    connection = Connection(socket)
    dist.setup_logging(logging.WARNING)
    try:
        start = json.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return
    try:
        worker = Worker(connection, mmap.mmap(memory, 0), start)
        connection.send_bytes(json.dumps({"ready": os.getpid()}).encode())
        threading.Thread(target=worker.listen, daemon=True).start()
        worker.work()
    except BrokenPipeError:
        return
    except BaseException as error:
        connection.send_bytes(json.dumps({"error": told(error)}).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
