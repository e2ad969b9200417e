"""Building the next items on a thread while the current one is used.

Positions need no care: each item carries its own. What the thread raises surfaces where the item was awaited.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Item = TypeVar("Item")

PATIENCE = 60.0
"""Seconds that `close` waits for items that are built together with other ranks, which may be gone."""


class Prefetch(Iterator[Item], Generic[Item]):
    """Items of `build`, up to `depth` ahead of the one given out; `close` it.

    Args:
        together: whether each item is built together with other ranks. Then `close` lets the items be built that may
            be built ahead, since a rank that stopped earlier than the others would leave them waiting for it.
    """

    def __init__(self, build: Callable[[], Item], depth: int, *, together: bool = False) -> None:
        self._build = build
        self._together = together
        self._room = depth
        self._ready: queue.SimpleQueue[tuple[Item | None, BaseException | None]] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._stop = False
        self._failure: BaseException | None = None
        # a daemon: a run that dies elsewhere must not hang here
        self._thread = threading.Thread(target=self._work, name="data-prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Item:
        if self._failure is None:
            assert not self._stop, "closed"
            item, self._failure = self._ready.get()
            with self._changed:
                self._room += 1
                self._changed.notify()
        if self._failure is not None:
            raise self._failure
        return item  # type: ignore[return-value]

    def close(self) -> bool:
        """Stops the thread and waits for it; False where it did not end, and what it builds from is still its own."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        self._thread.join(PATIENCE if self._together else None)
        if self._thread.is_alive():
            log.warning("other ranks did not answer for %g s; their rows are not waited for any longer", PATIENCE)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while self._may_build():
            try:
                self._ready.put((self._build(), None))
            except BaseException as error:  # whatever it is belongs to the consumer
                self._ready.put((None, error))
                return

    def _may_build(self) -> bool:
        """Waits for room; False when it is time to end."""
        with self._changed:
            while not self._room and not self._stop:
                self._changed.wait()
            if not self._room or (self._stop and not self._together):
                return False
            self._room -= 1
            return True
