"""Building the next items on a thread while the current one is used.

Positions need no care: each item carries its own. What the thread raises surfaces where the item was awaited.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetch(Iterator[Item], Generic[Item]):
    """Items of `build`, up to `depth` ahead of the one given out; `close` it."""

    def __init__(self, build: Callable[[], Item], depth: int) -> None:
        self._build = build
        self._room = threading.Semaphore(depth)
        self._ready: queue.SimpleQueue[tuple[Item | None, BaseException | None]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        # a daemon: a run that dies elsewhere must not hang here
        self._thread = threading.Thread(target=self._work, name="data-prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Item:
        if self._failure is None:
            assert not self._stop.is_set(), "closed"
            item, self._failure = self._ready.get()
            self._room.release()
        if self._failure is not None:
            raise self._failure
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Stops the thread and waits for it."""
        self._stop.set()
        self._room.release()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._room.acquire()
            if self._stop.is_set():
                return
            try:
                self._ready.put((self._build(), None))
            except BaseException as error:  # whatever it is belongs to the consumer
                self._ready.put((None, error))
                return
