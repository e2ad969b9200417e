"""What the page could not show, what happened to each run, and how each was made."""

from __future__ import annotations

from typing import Any

import yaml

from sail_train.report.lineage import parents_of
from sail_train.report.reading import Recipe, Run, mapping

MAX_EVENTS = 40
"""Last events shown of a run."""


def build(recipe: Recipe) -> dict[str, Any]:
    return {
        "missing": [("", text) for text in recipe.missing]
        + [(run.name, text) for run in recipe.runs for text in dict.fromkeys(run.missing)],
        "runs": [
            {
                "name": run.name,
                "path": f"{recipe.name}/{run.name}",
                "parents": parents(run),
                "code": str(mapping(run.lineage.get("code")).get("version", "")),
                "seed": run.config.get("seed"),
                "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
                "events": [event(one) for one in run.events[-MAX_EVENTS:]],
                "left_out": max(0, len(run.events) - MAX_EVENTS),
            }
            for run in recipe.runs
        ],
    }


def parents(run: Run) -> list[tuple[str, str, str]]:
    """(role, path, start of the model's hash)."""
    recorded = mapping(run.lineage.get("parents"))
    return [
        (role, path, str(mapping(recorded.get(role)).get("hash", ""))[:12]) for role, path in parents_of(run).items()
    ]


def event(record: dict[str, Any]) -> tuple[str, str, str]:
    """(time, kind, the rest in words)."""
    rest = {name: value for name, value in record.items() if name not in ("time", "event")}
    return (
        str(record.get("time", "")),
        str(record.get("event", "")),
        ", ".join(f"{name} {value}" for name, value in rest.items()),
    )
