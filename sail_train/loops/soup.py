"""The soup loop: average the weights of sibling runs, and keep the average only if it holds what they reach.

members -> refuse what is no sibling (lineage, architecture, tokenizer) -> what each member reaches -> average ->
what it reaches -> accepted: the average is the run's model; rejected: the best member is. soup.json says which and why.
Averaging helps where runs end in one basin: same parent, same stage, near settings (Wortsman et al. 2022;
SAIL-VL2 section 4.1.3). What lies further apart is refused rather than tried.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_train import dist
from sail_train.config import choice
from sail_train.engine.rundir import RunDir
from sail_train.loops.config import RunConfig
from sail_train.loops.evaluation import Suites, evaluate_run, load, read_suites, taken_over
from sail_train.loops.outcome import Outcome
from sail_train.loops.soup_siblings import check_siblings
from sail_train.loops.soup_weights import average, copy_model
from sail_train.model.folder import resolve

FILE = "soup.json"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run that goes into the soup, or the soup itself."""

    role: str
    run: Path
    metrics: dict[str, float]

    def score(self, names: Sequence[str]) -> tuple[float, float]:
        """(mean of the metrics, its standard error)."""
        value = sum(self.metrics[name] for name in names) / len(names)
        return value, math.sqrt(sum(self.metrics.get(f"{name}_se", 0.0) ** 2 for name in names)) / len(names)


def run(config: RunConfig) -> Outcome:
    """Makes the soup of `config.parents` (member_1, member_2 ...) in the run directory.

    Raises:
        ValueError: fewer than two members, members that are no siblings, or metrics that the evaluation does not give.
    """
    dist.init(timeout_minutes=config.engine.timeout_minutes)
    started = time.perf_counter()
    members = member_paths(config)
    check_metrics(config)
    check_siblings(members)
    run_dir = RunDir(config.run_dir)
    run_dir.event("start", world_size=dist.world_size(), members=list(map(str, members.values())))
    run_dir.truncate({})
    suites = read_suites(config.eval)
    evaluated = [evaluate_member(config, role, path, suites) for role, path in members.items()]
    if dist.is_main():
        average([resolve(path) for path in members.values()], shares(config, len(members)), run_dir.model)
    dist.barrier()
    soup = Member(role="soup", run=run_dir.path, metrics=evaluate_here(config, run_dir.model, suites))
    best, verdict = judge(config, evaluated, soup)
    run_dir.event("soup", accepted=verdict["accepted"], kept=verdict["kept"])
    metrics = soup.metrics
    if best is not None:
        if dist.is_main():
            copy_model(resolve(best.run), run_dir.model)
            run_dir.truncate({})  # the answers of a soup that is not kept
        dist.barrier()
        metrics = evaluate_here(config, run_dir.model, suites)
    if dist.is_main():
        write_verdict(run_dir.path / FILE, verdict)
    before = {name: sum(one.metrics[name] for one in evaluated) / len(evaluated) for name in evaluated[0].metrics}
    return Outcome(
        status="finished",
        seconds=time.perf_counter() - started,
        metrics_before=before,
        metrics_after=metrics,
        model_dir=run_dir.model,
    )


def member_paths(config: RunConfig) -> dict[str, Path]:
    """The members in order of their number; ValueError for fewer than two, or other parents."""
    for role in config.parents:
        if not role.startswith("member_") or not role.removeprefix("member_").isdigit():
            raise ValueError(f"parents.{role}: a soup takes member_1, member_2 ... and no other parents")
    roles = sorted(config.parents, key=lambda role: int(role.removeprefix("member_")))
    if len(roles) < 2:
        raise ValueError(f"parents={roles}: a soup needs at least two members; give parents.member_1 and member_2")
    return {role: Path(config.parents[role]) for role in roles}


def check_metrics(config: RunConfig) -> None:
    """The metrics that decide must be among those that are measured."""
    measured = {f"{suite}/{mode}": None for suite, modes in config.eval.modes.items() for mode in modes}
    if not config.soup.metrics:
        raise ValueError(
            f"soup.metrics is empty; name what decides, of eval.modes: {', '.join(measured) or 'empty too'}"
        )
    for name in config.soup.metrics:
        choice("soup.metrics", name, measured)


def shares(config: RunConfig, count: int) -> list[float]:
    weights = config.soup.weights
    if weights is not None and len(weights) != count:
        raise ValueError(f"soup.weights={weights} has {len(weights)} values for {count} members")
    return weights if weights is not None else [1 / count] * count


def evaluate_member(config: RunConfig, role: str, path: Path, suites: Suites) -> Member:
    """A member with what it reaches: as its own run measured it, if that was all and in the same way, else anew."""
    known = taken_over(config, path, suites)
    complete = len(known.passes) == sum(map(len, config.eval.modes.values()))
    metrics = known.metrics if complete else evaluate_here(config, resolve(path), suites, phase=role)
    return Member(role=role, run=path, metrics=metrics)


def evaluate_here(config: RunConfig, folder: Path, suites: Suites, *, phase: str = "after") -> dict[str, float]:
    model, processor = load(folder, precision=config.engine.precision)
    return evaluate_run(model, processor, config, phase=phase, suites=suites)


def judge(config: RunConfig, members: Sequence[Member], soup: Member) -> tuple[Member | None, dict[str, Any]]:
    """(the member that is kept instead, None if the soup is accepted; what soup.json says)."""
    names = config.soup.metrics
    scores = {one.role: one.score(names) for one in members}
    value, error = soup.score(names)
    floor = sum(score for score, _ in scores.values()) / len(scores) - config.soup.tolerance_se * error
    best = None if value >= floor else max(members, key=lambda one: scores[one.role][0])
    verdict = {
        "metrics": names,
        "tolerance_se": config.soup.tolerance_se,
        "weights": shares(config, len(members)),
        "members": {one.role: _shown(one.run.name, *scores[one.role]) for one in members},
        "soup": _shown("soup", value, error),
        "floor": floor,
        "accepted": best is None,
        "kept": "soup" if best is None else best.run.name,
    }
    return best, verdict


def _shown(name: str, value: float, error: float) -> dict[str, Any]:
    return {"name": name, "value": value, "se": error}


def write_verdict(path: Path, verdict: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(verdict, indent=1) + "\n")
    os.replace(partial, path)
