"""`sail-train run`: check everything, prepare the data, train entry after entry, end with a table and a report.

Nothing starts before every entry's config is composed and typed. An entry that is finished is skipped, one that was
begun goes on; a shut gate, a failure or Ctrl-C ends the run, and the same command goes on from there.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sail_train import dist, train
from sail_train.job.compose import Configs
from sail_train.job.config import Recipe
from sail_train.job.job import Job, load_recipe, resolve_entry
from sail_train.job.overrides import Request
from sail_train.job.state import Conduct
from sail_train.recipe import launcher, summary
from sail_train.recipe.launcher import Call
from sail_train.recipe.prepare import prepare

log = logging.getLogger(__name__)


def run_recipe(
    configs: Configs, request: Request, call: Call, *, conduct: Conduct, until: str | None = None, gates: bool = True
) -> int:
    """Runs the recipe that the request names, or the one entry of it; returns the exit code.

    Args:
        until: the last entry to run.
        gates: whether a shut gate ends the run.

    Raises:
        ValueError: anything in the request, the recipe or its stages that is wrong.
    """
    assert request.recipe is not None
    recipe = load_recipe(configs, request.recipe)
    _check_names(recipe, request.stage, until)
    jobs = [resolve_entry(configs, recipe, entry, request) for entry in recipe.entries]
    if not gates:
        jobs = [replace(job, gate=None) for job in jobs]
    wanted = _chosen(recipe, jobs, stage=request.stage, until=until)
    prepare(recipe.prepare, Path(jobs[0].config.data_dir))
    if wanted[0].launcher.kind == "slurm":
        return _queue(wanted, request.recipe, call, conduct)
    console = Console()
    began = time.monotonic()
    code = 0
    try:
        for number, job in enumerate(wanted, start=1):
            log.info("[%d/%d] %s (%s)", number, len(wanted), job.name, job.config.loop)
            code = launcher.launch(job, request.recipe, call, conduct)
            summary.write(jobs)
            gc.collect()  # models of one stage hang in reference cycles with their engine
            if code:
                break
    finally:
        _conclude(jobs, console, seconds=time.monotonic() - began)
    _explain(code, console)
    return code


def _check_names(recipe: Recipe, *names: str | None) -> None:
    """A misspelt entry is told at once, before every config is composed."""
    for name in names:
        if name is not None:
            recipe.entry(name)


def _chosen(recipe: Recipe, jobs: Sequence[Job], *, stage: str | None, until: str | None) -> list[Job]:
    """The jobs to run: one, all, or all up to one."""
    if stage is not None:
        name = recipe.entry(stage).name
        return [job for job in jobs if job.name == name]
    last = len(jobs) if until is None else recipe.entries.index(recipe.entry(until)) + 1
    return list(jobs[:last])


def _queue(jobs: Sequence[Job], recipe: str, call: Call, conduct: Conduct) -> int:
    queued = launcher.submit(jobs, recipe, call, conduct)
    for name, number in queued.items():
        log.info("%s is Slurm job %s", name, number)
    if not queued:
        log.info("every entry is finished")
    return 0


def _conclude(jobs: Sequence[Job], console: Console, *, seconds: float) -> None:
    """The table and the report, also after a failure: that is when they are looked at."""
    from sail_train.report.build import build_report

    entries = summary.write(jobs)
    console.print(summary.table(jobs, entries))
    report = build_report(jobs[0].config.recipe_dir)
    # stages tell the seconds of their own work; evaluation and start are in these
    console.print(f"took {seconds // 60:.0f} min {seconds % 60:.0f} s with evaluation", highlight=False)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)


def _explain(code: int, console: Console) -> None:
    if code == train.EXIT_SAVED:
        console.print("stopped and saved: the same command goes on from there")
    elif code not in (0, train.EXIT_GATE, train.EXIT_USAGE):
        console.print("failed: see above; the same command goes on from the last checkpoint")
    if dist.is_main() and code == 0:
        log.info("done")
