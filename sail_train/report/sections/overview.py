"""The top of the page: what the recipe is, how far it got, and one answer of the model it made."""

from __future__ import annotations

from typing import Any

from sail_train.report.names import gate, headline
from sail_train.report.picking import pick_run
from sail_train.report.reading import Recipe, is_number
from sail_train.report.sections.samples import card


def build(recipe: Recipe) -> dict[str, Any]:
    done = [run for run in recipe.runs if run.done]
    gates = [gate(run) for run in recipe.runs if gate(run)]
    return {
        "done": len(done),
        "total": len(recipe.runs),
        "seconds": total(recipe, "seconds"),
        "steps": total(recipe, "steps"),
        "tokens": total(recipe, "tokens"),
        "gates_passed": sum(bool(one.get("passed")) for one in gates),
        "gates": len(gates),
        "last": last_figure(recipe),
        "featured": featured(recipe),
        "unfinished": [(run.name, run.status) for run in recipe.runs if not run.done],
    }


def total(recipe: Recipe, name: str) -> float | None:
    values = [run.summary[name] for run in recipe.runs if is_number(run.summary.get(name))]
    return sum(values) if values else None


def last_figure(recipe: Recipe) -> dict[str, Any] | None:
    """The headline metric of the last evaluated run."""
    for run in reversed(recipe.runs):
        metric = headline(run)
        if metric is not None:
            result = run.result()
            return {"run": run.name, "metric": metric, "value": result[metric], "se": result.get(f"{metric}_se")}
    return None


def featured(recipe: Recipe) -> dict[str, Any] | None:
    """A right answer with a picture, from the last run that has one; one with a thought rather than without."""
    for run in reversed(recipe.runs):
        kept = [record for records in pick_run(run).right.values() for record in records]
        cards = [card(run, record) for record in kept]
        cards = [one for one in cards if one["images"]]
        if cards:
            return max(cards, key=lambda one: (bool(one["thought"]), -len(one["prompt"])))
    return None
