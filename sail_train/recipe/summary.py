"""What each entry did: outcome.json of every run -> summary.json and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from sail_train.job import state
from sail_train.job.job import Job
from sail_train.job.lineage import write_json

NOT_STARTED = "not started"
UNFINISHED = "unfinished"


def entry(job: Job) -> dict[str, Any]:
    """One entry of summary.json. `status`: "finished", "stopped", "gate", "unfinished" or "not started"."""
    found = state.outcome(job.run_dir) or {}
    status = found.get("status") or (UNFINISHED if state.begun(job.run_dir) else NOT_STARTED)
    after = found.get("metrics_after") or {}
    if status == state.FINISHED and job.gate is not None and job.gate.check(after):
        status = "gate"
    names = [Path(parent).name if Path(parent).name != "model" else parent for parent in job.config.parents.values()]
    return {
        "stage": job.name,
        "loop": job.config.loop,
        "status": status,
        "steps": found.get("steps"),
        "tokens": found.get("tokens"),
        "seconds": found.get("seconds"),
        "metrics_before": found.get("metrics_before") or {},
        "metrics_after": after,
        "parent": ", ".join(names) or None,
        "model_dir": found.get("model_dir"),
    }


def write(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Writes summary.json into the recipe's directory; returns its entries."""
    entries = [entry(job) for job in jobs]
    write_json(Path(jobs[0].config.recipe_dir) / "summary.json", entries)
    return entries


def headline(job: Job, metrics: dict[str, float]) -> str | None:
    """The metric that stands for the entry: its gate's, else the first that its config asks for and that is there."""
    asked = [f"{suite}/{mode}" for suite, modes in job.config.eval.modes.items() for mode in modes]
    wanted = [job.gate.metric] if job.gate is not None else []
    return next((name for name in wanted + asked if name in metrics), None)


def table(jobs: Sequence[Job], entries: Sequence[dict[str, Any]]) -> Table:
    """The table that a run ends with."""
    # narrow enough for 80 columns: what is cut off a number is worse than no frame around it
    shown = Table(
        title=f"recipe {jobs[0].recipe}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in ("stage", "status", "metric"):
        shown.add_column(column, no_wrap=True)
    for column in ("steps", "tokens", "seconds", "before", "after"):
        shown.add_column(column, justify="right", no_wrap=True)
    for job, one in zip(jobs, entries, strict=True):
        if one["status"] == NOT_STARTED:
            continue
        metric = headline(job, one["metrics_after"])
        numbers = (_count(one["steps"]), _count(one["tokens"]), _count(one["seconds"]))
        before, after = (_value(one[f"metrics_{phase}"], metric) for phase in ("before", "after"))
        shown.add_row(one["stage"], one["status"], metric or "", *numbers, before, after)
    seconds = sum(one["seconds"] or 0 for one in entries)
    tokens = sum(one["tokens"] or 0 for one in entries)
    shown.add_section()
    waiting = sum(one["status"] == NOT_STARTED for one in entries)
    shown.add_row("total", f"{waiting} to go" if waiting else "", "", "", _count(tokens), _count(seconds), "", "")
    return shown


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def _value(metrics: dict[str, float], name: str | None) -> str:
    return f"{metrics[name]:.3f}" if name is not None and name in metrics else ""
