"""What a run directory says about its run: untouched, begun or finished, and whether this process may train in it.

`decide` compares the job with what is there: skip what is finished, go on with what is begun, refuse what was made
otherwise (naming each difference), move it aside where the user said `force=true`.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sail_train.job import lineage, shards
from sail_train.job.job import Job

FINISHED = "finished"
"""Status of an outcome that needs no more work."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """How differences are met."""

    force: bool = False
    """Train anew what was made otherwise; the old run is kept aside."""
    explicit: bool = False
    """The user named this very run: with `force`, train it anew even if nothing changed."""
    ignore_code: bool = False
    """A run made by other code is taken as it is."""


def outcome(run_dir: Path) -> dict[str, Any] | None:
    """outcome.json: what the run's last process reported; None before the first."""
    return lineage.read_json(run_dir / "outcome.json")


def finished(run_dir: Path) -> bool:
    found = outcome(run_dir)
    return found is not None and found["status"] == FINISHED


def begun(run_dir: Path) -> bool:
    """Whether something was trained that a resume would build on; a start that failed at once left nothing."""
    if not (run_dir / "lineage.json").is_file():
        return False
    told = ("events.jsonl", "quarantine.jsonl")  # why nothing was trained, perhaps
    records = [path for path in run_dir.glob("*.jsonl") if path.name not in told and path.stat().st_size]
    return bool(records) or any((run_dir / "checkpoints").glob("step-*")) or finished(run_dir)


def decide(job: Job, conduct: Conduct) -> bool:
    """Whether the job is to be trained; False if it is finished.

    Raises:
        ValueError: its directory holds a run made otherwise, and `force` was not said; or a parent is not there.
    """
    lineage.parents(job.config)
    if not begun(job.run_dir):
        return True
    changed = lineage.changes(job, ignore_code=conduct.ignore_code)
    again = conduct.force and (bool(changed) or (conduct.explicit and finished(job.run_dir)))
    if again:
        log.info("%s: trained anew; the old run is kept in %s", job.run_dir, _move_aside(job.run_dir))
        return True
    if changed:
        if not finished(job.run_dir) and lineage.only_mix_changed(job, ignore_code=conduct.ignore_code):
            _refuse_mix(job, changed)
        what = "\n  ".join(changed)
        ignore = "\nor --ignore-code to keep it as it is" if any(line.startswith("code:") for line in changed) else ""
        state = "finished" if finished(job.run_dir) else "begun"
        raise ValueError(
            f"{job.run_dir} was {state} with something else:\n  {what}\n"
            f"Say force=true to train it anew (the old run is kept aside){ignore}"
        )
    return not finished(job.run_dir)


def _refuse_mix(job: Job, changed: list[str]) -> None:
    what = "\n  ".join(changed)
    raise ValueError(
        f"{job.run_dir} was begun with another mixture:\n  {what}\nSay data.allow_mix_change=true to go on with this "
        "one from where it stands (a source that is to end gets a stop_step, not weight 0), or force=true to train it "
        "anew (the old run is kept aside)"
    )


def _move_aside(run_dir: Path) -> Path:
    """Renames the directory out of the way, never over another one."""
    place = run_dir.parent / ".replaced"
    place.mkdir(exist_ok=True)
    number = 1
    while (target := place / f"{run_dir.name}-{number}").exists():
        number += 1
    return run_dir.rename(target)


def write_start(job: Job) -> dict[str, list[str]]:
    """config.yaml, lineage.json and shards.json, before the first step; returns `shards.held`, which hold already."""
    known = (lineage.read_json(job.run_dir / lineage.SHARDS) or {}) if begun(job.run_dir) else {}
    held = shards.held(job.config.data, known)
    shards.hold(job.config.data, held)
    # an earlier process's word on how it ended must not be taken for this one's
    (job.run_dir / "outcome.json").unlink(missing_ok=True)
    text = yaml.safe_dump(job.written, sort_keys=False, allow_unicode=True, width=120)
    record = lineage.record(job)
    lineage.write_text(job.run_dir / "config.yaml", text)
    lineage.write_json(job.run_dir / lineage.SHARDS, shards.remembered(job.config.data) | known)
    lineage.write_json(job.run_dir / "lineage.json", record)
    return held


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the run for this process; `ValueError` if another one trains in it."""
    # beside the directory, not in it: the directory may be moved aside while the lock is held
    path = run_dir.parent / f".{run_dir.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{run_dir}: another process is training there; wait for it, or stop it first") from None
        yield
