"""What a person watching sees: one live line on a terminal, a plain log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from sail_train import dist

log = logging.getLogger(__name__)


class Progress:
    """Context manager; `update` after each step. Ranks other than 0 show nothing."""

    def __init__(self, *, name: str, max_steps: int, log_every: int) -> None:
        self.max_steps = max_steps
        self.log_every = log_every
        self._live: Any = None
        self._task: Any = None
        if dist.is_main() and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._live = RichProgress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True))
            self._task = self._live.add_task(name, total=max_steps, text="")

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, record: Mapping[str, Any]) -> None:
        """Shows a record of metrics.jsonl."""
        step = record["step"]
        if self._live is not None:
            self._live.update(self._task, completed=step, text=_text(record))
        elif step % self.log_every == 0 or step == self.max_steps:
            log.info("step %d/%d  %s", step, self.max_steps, _text(record))


def _text(record: Mapping[str, Any]) -> str:
    shown = [f"loss {record['loss']:.4f}", f"grad {record['grad_norm']:.3g}", f"{record['tokens_per_s']:.0f} tok/s"]
    if "mfu" in record:
        shown.append(f"MFU {record['mfu']:.1%}")
    return "  ".join(shown)
