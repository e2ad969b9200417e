"""SIGTERM, SIGINT and SIGUSR1 ask for a checkpoint and an orderly end; all ranks agree on when.

A handler only sets a flag. The flag travels with the next step's reduction, so whichever rank was told, all save
after the same step. Then the process exits with EXIT_SAVED, by which a launcher knows that resuming makes sense.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType

EXIT_SAVED = 75
"""Exit code of a run that was asked to stop, saved and can be resumed (EX_TEMPFAIL of sysexits.h)."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
IMPATIENT = 3
"""So many Ctrl-C and it stops at once, without saving."""

log = logging.getLogger(__name__)


class StopRequest:
    """Context manager: our handlers inside, whatever was there before afterwards."""

    def __init__(self) -> None:
        self.received: str | None = None
        """Name of the first signal that this rank got."""
        self._interrupts = 0
        self._previous: dict[int, object] = {}

    @property
    def flag(self) -> float:
        """1 if this rank was asked to stop: to be summed over ranks."""
        return float(self.received is not None)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.received is None:
            self.received = name
            log.warning("%s: saving after this step, then stopping", name)
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts >= IMPATIENT:
                raise KeyboardInterrupt
