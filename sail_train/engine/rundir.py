"""A run's directory: lines appended to its .jsonl files by rank 0, and cut back to a checkpoint on resume.

After a crash the files hold lines of steps that will be trained again. A checkpoint records their lengths; cutting
them back makes the files of a killed run equal those of an uninterrupted one. events.jsonl alone is never cut: it
tells what happened, crashes included.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sail_train import dist

EVENTS = "events.jsonl"

log = logging.getLogger(__name__)


class RunDir:
    """The directory of one run; on ranks other than 0 everything here but reading does nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if dist.is_main():
            self.path.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The Hugging Face folder that a finished stage leaves."""
        return self.path / "model"

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Adds a line to `name` (".jsonl" is added where missing); NaN and infinity become null."""
        if not dist.is_main():
            return
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
        with open(self._file(name), "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def event(self, kind: str, **fields: Any) -> None:
        """Adds to events.jsonl what happened, when; and logs it."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.append(EVENTS, {"time": now, "event": kind, **fields})
        log.info("%s%s", kind, "".join(f" {name}={value}" for name, value in fields.items()))

    def lengths(self) -> dict[str, int]:
        """Bytes of each .jsonl file, after they are safely on disk."""
        lengths = {}
        for file in sorted(self.path.glob("*.jsonl")):
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
            lengths[file.name] = file.stat().st_size
        return lengths

    def truncate(self, lengths: Mapping[str, int]) -> None:
        """Cuts every .jsonl file but events.jsonl back to its length in `lengths`, to nothing if it is not there."""
        if not dist.is_main():
            return
        for file in sorted(self.path.glob("*.jsonl")):
            length = lengths.get(file.name, 0)
            if file.name == EVENTS or file.stat().st_size == length:
                continue
            if file.stat().st_size < length:
                raise ValueError(
                    f"{file} has {file.stat().st_size} bytes, the checkpoint says {length}; it was changed since."
                    " Restore it, or delete it and the checkpoints to start the run again"
                )
            os.truncate(file, length)

    def _file(self, name: str) -> Path:
        return self.path / (name if name.endswith(".jsonl") else f"{name}.jsonl")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
