"""A recipe's directory as the report sees it: every file that is there, and a note for every one that is not.

Nothing here fails on a missing, half-written or foreign file: a report is most wanted when a run went wrong. Numbers
that are no numbers and lines that are no JSON are left out; what is left out is said on the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FINISHED = "finished"
"""Status in summary.json of a run that is complete; one that ended at its gate has "gate"."""


@dataclass(kw_only=True)
class Run:
    """One entry of the recipe."""

    name: str
    path: Path
    status: str = "not started"
    loop: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    """Its entry in summary.json."""
    config: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    soup: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Lines of metrics.jsonl, by step."""
    events: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    picked: Any = None
    """What `picking.pick_run` kept of samples.jsonl, so that the file is read once."""
    missing: list[str] = field(default_factory=list)
    """Files that the page would have liked and what is wrong with them."""

    @property
    def done(self) -> bool:
        return self.status == FINISHED

    def result(self, phase: str = "after") -> dict[str, float]:
        """Metrics of the evaluation before or after the stage; what summary.json says where there is none."""
        found = mapping(mapping(self.evaluation.get(phase)).get("metrics"))
        found = found or mapping(self.summary.get(f"metrics_{phase}"))
        return {str(name): value for name, value in found.items() if is_number(value)}

    def column(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of one metric, where it is a finite number."""
        return [
            (float(line["step"]), float(line[name]))
            for line in self.metrics
            if is_number(line.get(name)) and is_number(line.get("step"))
        ]


@dataclass(kw_only=True)
class Recipe:
    name: str
    path: Path
    runs: list[Run]
    missing: list[str] = field(default_factory=list)

    def run(self, name: str) -> Run | None:
        return next((run for run in self.runs if run.name == name), None)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a mapping, else an empty one: files may say anything."""
    return value if isinstance(value, dict) else {}


def shard_patterns(source: Any) -> list[str]:
    """The `shards` of a source in a config, one or several."""
    shards = mapping(source).get("shards")
    if isinstance(shards, list):
        return [item for item in shards if isinstance(item, str)]
    return [shards] if isinstance(shards, str) else []


def read_recipe(directory: Path) -> Recipe:
    """Everything the report needs from `directory`. Raises ValueError if it is no directory or holds no run."""
    if not directory.is_dir():
        raise ValueError(f"{directory} is no directory; give a recipe's directory such as runs/tiny")
    missing: list[str] = []
    entries = [mapping(entry) for entry in _json(directory / "summary.json", missing, expected=list)]
    by_name = {str(entry["stage"]): entry for entry in entries if "stage" in entry}
    names = list(by_name) + [path.name for path in _run_folders(directory) if path.name not in by_name]
    if not names:
        raise ValueError(f"{directory} holds no run: neither summary.json nor a folder with config.yaml")
    runs = [read_run(directory / name, by_name.get(name, {})) for name in names]
    return Recipe(name=directory.name, path=directory, runs=runs, missing=missing)


def _run_folders(directory: Path) -> list[Path]:
    """Runs in the order in which they were started."""
    folders = [path.parent for path in directory.glob("*/config.yaml")]
    return sorted(folders, key=lambda folder: ((folder / "config.yaml").stat().st_mtime, folder.name))


def read_run(path: Path, entry: dict[str, Any]) -> Run:
    """What a run's directory holds; `entry` is its own in summary.json, else outcome.json takes its place."""
    run = Run(name=path.name, path=path, summary=entry)
    if path.is_dir():
        if not entry and (path / "outcome.json").is_file():
            run.summary = entry = _json(path / "outcome.json", run.missing, expected=dict)
        run.config = _yaml(path / "config.yaml", run.missing)
        run.lineage = _json(path / "lineage.json", run.missing, expected=dict)
        if (path / "evaluation.json").is_file() or mapping(run.config.get("eval")).get("modes"):
            run.evaluation = _json(path / "evaluation.json", run.missing, expected=dict)
        if (path / "metrics.jsonl").is_file() or mapping(run.config.get("optim")).get("lr"):
            run.metrics = list(read_lines(path / "metrics.jsonl", run.missing))
        run.events = list(read_lines(path / "events.jsonl", run.missing))
        if (path / "quarantine.jsonl").is_file():
            run.quarantine = list(read_lines(path / "quarantine.jsonl", run.missing))
        if (path / "soup.json").is_file():
            run.soup = _json(path / "soup.json", run.missing, expected=dict)
    else:
        run.missing.append("no run directory yet")
    run.loop = str(entry.get("loop") or run.config.get("loop") or "")
    run.status = str(entry.get("status") or ("unfinished" if run.metrics or run.events else "not started"))
    return run


def read_object(path: Path, missing: list[str]) -> dict[str, Any]:
    """The object in a JSON file; empty, and noted, if there is none."""
    return _json(path, missing, expected=dict)


def _json(path: Path, missing: list[str], *, expected: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        missing.append(f"{path.name} is missing")
        return expected()
    except ValueError:
        missing.append(f"{path.name} is not readable JSON")
        return expected()
    if not isinstance(value, expected):
        missing.append(f"{path.name} is not a {expected.__name__}")
        return expected()
    return value


def _yaml(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        return mapping(yaml.safe_load(path.read_text(encoding="utf-8", errors="replace")))
    except FileNotFoundError:
        missing.append(f"{path.name} is missing")
    except yaml.YAMLError:
        missing.append(f"{path.name} is not readable YAML")
    return {}


def read_lines(path: Path, missing: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a .jsonl file; a torn last line and other rubbish is counted, not shown."""
    if not path.is_file():
        missing.append(f"{path.name} is missing")
        return
    broken = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                broken += 1
                continue
            if isinstance(value, dict):
                yield value
    if broken:
        missing.append(f"{path.name} has {broken} broken line{'s' if broken > 1 else ''}")
