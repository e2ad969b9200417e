"""wandb and tensorboard: optional, fed from rank 0, and never a reason to stop training.

A tracker that raises is logged once and dropped; metrics.jsonl has everything anyway. API keys come from the
environment when wandb asks for them; what looks like a secret in the settings is masked before it is handed over.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sail_train.engine.config import LogConfig

SECRET = re.compile(r"(^|_)(api_?key|secret|password|passwd|credentials?|(access|auth|bearer)_token)s?$", re.IGNORECASE)

log = logging.getLogger(__name__)


class Tracker(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Wandb:
    """One wandb run per run directory; a resumed run goes on with the same id."""

    def __init__(self, directory: Path, config: LogConfig, settings: Mapping[str, Any]) -> None:
        import wandb

        id_file = directory / "wandb.id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12])
        self.run = wandb.init(
            project=config.project,
            name=directory.name,
            id=id_file.read_text().strip(),
            dir=str(directory),
            mode="offline" if config.wandb == "offline" else "online",
            resume="allow",
            config=redact(settings),
            save_code=False,
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class Tensorboard:
    def __init__(self, directory: Path, config: LogConfig, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory / "tensorboard"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Trackers:
    """Those that the config asks for; each one is on its own."""

    def __init__(self, directory: Path, config: LogConfig, settings: Mapping[str, Any]) -> None:
        self._trackers: dict[str, Tracker] = {}
        wanted: dict[str, Callable[[Path, LogConfig, Mapping[str, Any]], Tracker]] = {}
        if config.wandb != "off":
            wanted["wandb"] = Wandb
        if config.tensorboard:
            wanted["tensorboard"] = Tensorboard
        for name, build in wanted.items():
            self._guarded(name, partial(self._start, name, partial(build, directory, config, settings)))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, partial(tracker.log, numbers, step))

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.close)

    def _start(self, name: str, build: Callable[[], Tracker]) -> None:
        self._trackers[name] = build()

    def _guarded(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a third party's service raises
            self._trackers.pop(name, None)
            # The type only: messages of HTTP clients may quote headers.
            log.warning("%s failed (%s) and is switched off; metrics.jsonl goes on", name, type(error).__name__)


def redact(value: Any) -> Any:
    """`value` with whatever a key names as a secret replaced by "***"."""
    if isinstance(value, Mapping):
        return {key: "***" if SECRET.search(str(key)) and item else redact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return value
