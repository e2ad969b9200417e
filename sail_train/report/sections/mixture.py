"""What was trained on: each source's share as asked for and as consumed, how full rows were, what was thrown out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sail_train.report.picking import pick_run
from sail_train.report.reading import Recipe, Run, is_number, mapping, read_object

CONSUMED = "samples/"
"""Prefix of the per-source counts in metrics.jsonl."""

FILL = "fill"


def build(recipe: Recipe) -> dict[str, Any] | None:
    runs = []
    for run in recipe.runs:
        sources, bad, rates = mixture(run), quarantined(run), pass_rates(run)
        if sources or bad or rates:
            shown = {"sources": sources, "fill": mean(run, FILL), "quarantined": bad, "pass_rates": rates}
            runs.append({"name": run.name, **shown})
    return {"runs": runs, "made": made(recipe)} if runs else None


def made(recipe: Recipe) -> list[tuple[str, list[tuple[str, str]]]]:
    """(data directory, options it was made with) of synthetic data whose synth.json is still there."""
    found = []
    for folder in dict.fromkeys(str(run.config.get("data_dir", "")) for run in recipe.runs):
        path = Path(folder) / "synth.json"
        if folder and path.is_file():
            options = read_object(path, recipe.missing)
            found.append((folder, [(str(name), str(value)) for name, value in options.items()]))
    return found


def mixture(run: Run) -> list[dict[str, Any]]:
    """Sources with the share asked for, the share consumed and the number of samples, largest first."""
    sources = mapping(mapping(run.config.get("data")).get("sources"))
    weights = {str(name): weight(mapping(source)) for name, source in sources.items()}
    weights = {name: value for name, value in weights.items() if value > 0}
    used = consumed(run, list(weights))
    asked_total, used_total = sum(weights.values()), sum(used.values())
    if not used_total:
        return []
    rows: list[dict[str, Any]] = [
        {"name": name, "asked": weights[name] / asked_total, "consumed": used[name] / used_total, "samples": used[name]}
        for name in sorted(weights, key=lambda name: -weights[name])
    ]
    widest = max(max(row["asked"], row["consumed"]) for row in rows)
    return [row | {"widths": (row["asked"] / widest, row["consumed"] / widest)} for row in rows]


def consumed(run: Run, sources: list[str]) -> dict[str, float]:
    """Samples of each source that were trained on; of an RL run the responses that were drawn."""
    used = {name: sum(value for _, value in run.column(CONSUMED + name)) for name in sources}
    return used if any(used.values()) else {name: float(pick_run(run).rollouts_by_source[name]) for name in sources}


def weight(source: dict[str, Any]) -> float:
    value = source.get("weight", 1.0)
    return float(value) if is_number(value) and value > 0 else 0.0


def mean(run: Run, name: str) -> float | None:
    values = [value for _, value in run.column(name)]
    return sum(values) / len(values) if values else None


def pass_rates(run: Run) -> list[tuple[str, float]]:
    """(range of pass rates, share of the prompts in it) of a sampling run: how hard its prompts were."""
    rates = pick_run(run).pass_rates
    if not rates:
        return []
    ranges = {"none right": (-1.0, 0.0), "some": (0.0, 0.5), "half and more": (0.5, 0.9999), "all right": (0.9999, 2.0)}
    bounds = ranges.items()
    return [(name, sum(low < rate <= high for rate in rates) / len(rates)) for name, (low, high) in bounds]


def quarantined(run: Run) -> list[tuple[str, str, int]]:
    """(source, reason, samples thrown out), most first."""
    counts = Counter((str(bad.get("source", "?")), str(bad.get("reason", "?"))) for bad in run.quarantine)
    return [(source, reason, number) for (source, reason), number in counts.most_common()]
