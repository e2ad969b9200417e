"""Checkpoints that are there whole or not at all.

write aside (.step-00000100.tmp) -> every rank's files -> fsync and sha256, shared out over ranks -> manifest.json
last, fsync -> rename to step-00000100 -> fsync of the parent -> older ones beyond `keep` removed.
A directory counts when its manifest is there and every file in it has the recorded size and hash; there is no
"latest" file to be wrong. All ranks see the same file system.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sail_train import dist

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8})")
TEMPORARY = re.compile(r"\.step-\d{8}\.(tmp|old)")

log = logging.getLogger(__name__)


class SaveFailed(OSError):
    """A rank could not write; the checkpoints before are as they were."""


class Checkpoints:
    """The checkpoints in one directory. Every method is called by all ranks together."""

    def __init__(self, root: str | Path, *, keep: int) -> None:
        self.root = Path(root)
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Runs `write(directory)` on every rank and commits what it wrote.

        Raises:
            SaveFailed: on all ranks, if any rank met an OSError (a full disk).
        """
        final, aside = self.root / f"step-{step:08d}", self.root / f".step-{step:08d}.tmp"
        _together("prepare", lambda: _fresh(aside) if dist.is_main() else None)
        try:
            _together("write", lambda: write(aside))
            hashes = _together("hash", lambda: _sync_and_hash(aside))
            _together("commit", lambda: _commit(aside, final, step, hashes) if dist.is_main() else None)
        except SaveFailed:
            if dist.is_main():
                shutil.rmtree(aside, ignore_errors=True)
            raise
        _together("remove old", self._remove_old if dist.is_main() else lambda: None)
        return final

    def latest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that verifies, and why each newer one was refused. Cleans up half-written ones."""
        _together("clean up", self._clean_up if dist.is_main() else lambda: None)
        names = dist.broadcast_json([path.name for path in self._found()])
        refused: list[str] = []
        for name in reversed(names):
            problems = verify(self.root / name)
            if not problems:
                return self.root / name, refused
            refused.append(f"{name}: {'; '.join(problems)}")
            log.warning("checkpoint refused: %s", refused[-1])
        return None, refused

    def _found(self) -> list[Path]:
        """Complete-looking checkpoints, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if NAME.fullmatch(path.name))

    def _clean_up(self) -> None:
        for path in self.root.iterdir() if self.root.is_dir() else ():
            if TEMPORARY.fullmatch(path.name):
                log.warning("removing half-written checkpoint %s", path.name)
                shutil.rmtree(path)

    def _remove_old(self) -> None:
        for path in self._found()[: -self.keep]:
            doomed = path.with_name(f".{path.name}.old")  # so that a kill in between leaves no partial checkpoint
            os.rename(path, doomed)
            shutil.rmtree(doomed)


def verify(directory: Path) -> list[str]:
    """What is wrong with a checkpoint, [] if nothing; its files are shared out over ranks."""
    problems = dist.gather_objects(_problems(directory))
    return [problem for of_rank in problems for problem in of_rank]


def _problems(directory: Path) -> list[str]:
    """What this rank finds wrong: rank 0 with the list of files, each with its share of them."""
    files, problem = _read_manifest(directory)
    if problem is not None:
        return [problem] if dist.is_main() else []
    problems = []
    if dist.is_main():
        extra = {path.name for path in directory.iterdir()} - {MANIFEST, *files}
        problems = [f"{name} is not in the manifest" for name in sorted(extra)]
    for name, entry in sorted(files.items())[dist.rank() :: dist.world_size()]:
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
        elif _sha256(path) != entry["sha256"]:
            problems.append(f"{name} does not match its sha256")
    return problems


def _read_manifest(directory: Path) -> tuple[dict[str, dict[str, Any]], str | None]:
    """(entry of each file, None), or ({}, what is wrong)."""
    if not (directory / MANIFEST).is_file():
        return {}, f"no {MANIFEST}"
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        digest = manifest.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}, f"{MANIFEST} is damaged"
    if digest != _digest(manifest):
        return {}, f"{MANIFEST} is damaged"
    return manifest["files"], None


def _together(what: str, action: Callable[[], Any]) -> list[Any]:
    """Runs `action` on every rank and gathers its JSON results; a failed write of one becomes a SaveFailed of all."""
    result, problem = None, None
    try:
        result = action()
    except (OSError, SafetensorError) as error:
        problem = f"rank {dist.rank()}: {error}"
    gathered = dist.gather_objects([result, problem])
    problems = [problem for _, problem in gathered if problem is not None]
    if problems:
        raise SaveFailed(f"checkpoint not saved ({what}): {'; '.join(problems)}")
    return [result for result, _ in gathered]


def _fresh(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)


def _sync_and_hash(directory: Path) -> dict[str, dict[str, Any]]:
    """Manifest entries of this rank's share of the files."""
    entries = {}
    for path in sorted(directory.iterdir())[dist.rank() :: dist.world_size()]:
        _fsync(path)
        entries[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return entries


def _commit(aside: Path, final: Path, step: int, hashes: list[dict[str, Any]]) -> None:
    files = {name: entry for of_rank in hashes for name, entry in of_rank.items()}
    manifest = {"step": step, "world_size": dist.world_size(), "files": files}
    (aside / MANIFEST).write_text(json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1))
    _fsync(aside / MANIFEST)
    _fsync(aside)
    old = final.with_name(f".{final.name}.old")
    if final.exists():  # refused and reached again, or saved once more after skipped steps
        os.rename(final, old)
    os.rename(aside, final)
    _fsync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _digest(manifest: dict[str, Any]) -> str:
    """Of a manifest's content, so that a flipped bit in the manifest itself shows too."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
