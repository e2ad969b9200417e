"""From a request to a `Job`: everything one training process needs to know, before anything heavy is imported.

With `recipe=R stage=N` the job is entry N of recipe R, in the recipe's directory, with its parents; without a recipe
a stage runs in `runs/adhoc/<stage>`. Values come in layers: files, recipe, entry, command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_train.config import suggestion, to_dataclass, to_mapping
from sail_train.job.compose import Composed, Configs, Layer, redacted
from sail_train.job.config import SERVICES, Entry, Gate, LauncherConfig, Recipe
from sail_train.job.overrides import Assignment, Request, flatten, parse_entries
from sail_train.loops.config import RunConfig

COMMAND_LINE = "command line"


@dataclass(kw_only=True)
class Job:
    """One run of one stage."""

    name: str
    """The entry's name, or the stage's outside a recipe."""
    stage: str
    recipe: str | None
    config: RunConfig
    written: dict[str, Any]
    """The config as it may be written down: references to the environment unresolved, secrets blanked."""
    origins: dict[str, str]
    """Where each leaf comes from; a leaf that is not in it is a default."""
    launcher: LauncherConfig
    gate: Gate | None
    needs: tuple[str, ...]
    """Earlier entries whose outputs this one reads: its parents, and those whose directories its values name."""

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)


def load_recipe(configs: Configs, name: str) -> Recipe:
    """A recipe file as its dataclass, its graph checked and its stages known."""
    content = configs.load("recipe", name)
    try:
        recipe: Recipe = to_dataclass(Recipe, {"name": name.replace("/", "-"), **content})
    except ValueError as error:
        raise ValueError(f"recipe {name}: {error}") from None
    for entry in recipe.entries:
        names = configs.names("stage")
        if entry.stage not in names:
            raise ValueError(
                f"recipe {name}: {entry.name}: there is no stage {entry.stage!r}; {suggestion(entry.stage, names)}"
            )
    return recipe


def resolve(configs: Configs, request: Request) -> Job:
    """The job that `request` asks for; `ValueError` for whatever in it is wrong."""
    if request.recipe is None:
        if request.stage is None:
            raise ValueError(
                f"which stage? Say stage=NAME, or recipe=NAME stage=ENTRY; stages: {', '.join(configs.names('stage'))}"
            )
        return _adhoc(configs, configs.check("stage", request.stage), request)
    recipe = load_recipe(configs, request.recipe)
    if request.stage is None:
        raise ValueError(
            f"recipe={request.recipe}: which entry? Say stage=NAME: {', '.join(e.name for e in recipe.entries)};"
            " `sail-train run` runs them all"
        )
    return resolve_entry(configs, recipe, recipe.entry(request.stage), request)


def recipe_dir(recipe: Recipe, request: Request) -> str:
    """Where the recipe's runs lie: `recipe_dir=` of the command line or of the recipe, else runs/<recipe>."""
    layers = [*parse_entries(recipe.overrides, where=recipe.name).assignments, *request.assignments]
    chosen = [str(item.value) for item in layers if item.key == "recipe_dir"]
    return chosen[-1] if chosen else f"runs/{recipe.name}"


def resolve_entry(configs: Configs, recipe: Recipe, entry: Entry, request: Request) -> Job:
    """The job of one entry, with what the command line says on top."""
    _refuse_run_dir(request)
    base = recipe_dir(recipe, request)
    file = f"configs/recipe/{request.recipe}.yaml"
    of_recipe = parse_entries(recipe.overrides, where=f"recipe {recipe.name}: overrides")
    of_entry = parse_entries(entry.overrides, where=f"recipe {recipe.name}: {entry.name}: overrides")
    parents = {role: parent if "/" in parent else f"{base}/{parent}" for role, parent in entry.parents.items()}
    layers = [
        Layer(label=f"{file}: {entry.name}: services", assignments=_service_values(entry)),
        Layer(label=file, assignments=of_recipe.assignments),
        Layer(label=f"{file}: {entry.name}", assignments=of_entry.assignments + _parent_values(parents)),
        Layer(label=COMMAND_LINE, assignments=request.assignments + _parent_of(request)),
        Layer(label="the runner", assignments=_places(base, f"{base}/{entry.name}")),
    ]
    groups = of_recipe.groups | of_entry.groups | request.groups
    composed = configs.compose(stage=entry.stage, groups=groups, layers=layers)
    earlier = [other.name for other in recipe.entries[: recipe.entries.index(entry)]]
    return _job(composed, entry, recipe=recipe.name, earlier=earlier)


def _adhoc(configs: Configs, stage: str, request: Request) -> Job:
    chosen = [str(item.value) for item in request.assignments if item.key == "run_dir" and not item.delete]
    name = stage.replace("/", "-")
    run_dir = chosen[-1] if chosen else f"runs/adhoc/{name}"
    layers = [
        Layer(label=COMMAND_LINE, assignments=request.assignments + _parent_of(request)),
        Layer(label="the runner", assignments=_places(str(Path(run_dir).parent), run_dir)),
    ]
    composed = configs.compose(stage=stage, groups=request.groups, layers=layers)
    return _job(composed, Entry(name=name, stage=stage), recipe=None, earlier=[])


def _job(composed: Composed, entry: Entry, *, recipe: str | None, earlier: Sequence[str]) -> Job:
    values, masked = composed.resolved(), composed.masked()
    launcher: LauncherConfig = to_dataclass(LauncherConfig, values.pop("launcher"), path="launcher")
    masked.pop("launcher")
    config: RunConfig = to_dataclass(RunConfig, values)
    config.seed += entry.seed_offset
    if entry.gate is not None:
        _check_gate(entry.name, entry.gate, config)
    return Job(
        name=entry.name,
        stage=entry.stage,
        recipe=recipe,
        config=config,
        written=redacted(_with_references(to_mapping(config), values, masked)),
        origins=composed.origins,
        launcher=launcher,
        gate=entry.gate,
        needs=_needs(entry, values, earlier),
    )


def _check_gate(name: str, gate: Gate, config: RunConfig) -> None:
    """A gate on what is never measured would be found shut after the training."""
    asked = [f"{suite}/{mode}" for suite, modes in config.eval.modes.items() for mode in modes]
    # "read/greedy" brings "read/greedy_digits" and the like with it, and two modes their difference
    if not any(gate.metric.startswith(one) for one in asked) and "_minus_" not in gate.metric:
        raise ValueError(f"{name}: gate.metric={gate.metric!r} is not asked for by eval.modes; {_gates(gate, asked)}")


def _gates(gate: Gate, asked: list[str]) -> str:
    return suggestion(gate.metric, asked) if asked else "set eval.modes.SUITE=[greedy]"


def _with_references(full: dict[str, Any], values: dict[str, Any], masked: dict[str, Any]) -> dict[str, Any]:
    """`full` with each leaf that depends on the environment put back as it was written."""
    resolved = dict(flatten(values))
    for path, value in flatten(masked):
        if resolved.get(path) != value:
            *parents, leaf = path.split(".")
            node = full
            for key in parents:
                node = node[key]
            node[leaf] = value
    return full


def _needs(entry: Entry, values: dict[str, Any], earlier: Sequence[str]) -> tuple[str, ...]:
    base = values["recipe_dir"]
    texts = [text for _, value in flatten(values) for text in (value if isinstance(value, list) else [value])]
    named = {name for name in earlier for text in texts if isinstance(text, str) and text.startswith(f"{base}/{name}/")}
    return tuple(name for name in earlier if name in named or name in entry.parents.values())


def _refuse_run_dir(request: Request) -> None:
    for item in request.assignments:
        if item.key == "run_dir":
            raise ValueError(
                f"run_dir={item.value}: an entry of a recipe runs in <recipe_dir>/<entry>; set recipe_dir=... instead"
            )


def _places(base: str, run_dir: str) -> list[Assignment]:
    return [Assignment(key="recipe_dir", value=base), Assignment(key="run_dir", value=run_dir)]


def _parent_values(parents: dict[str, str]) -> list[Assignment]:
    return [Assignment(key=f"parents.{role}", value=path) for role, path in parents.items()]


def _service_values(entry: Entry) -> list[Assignment]:
    return [Assignment(key=key, value=value) for name in entry.services for key, value in SERVICES[name].items()]


def _parent_of(request: Request) -> list[Assignment]:
    return [] if request.parent is None else [Assignment(key="parents.model", value=request.parent)]
