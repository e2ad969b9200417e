"""`sail-train config`: the composed config as YAML, each value with where it comes from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from rich.console import Console

from sail_train import train
from sail_train.job.compose import CONFIGS, Configs
from sail_train.job.job import Job, load_recipe, resolve
from sail_train.job.overrides import parse_tokens

EPILOG = """\
examples:
  sail-train config                                     the stages, recipes and groups there are
  sail-train config recipe=tiny                         the entries of a recipe
  sail-train config recipe=tiny stage=align train.max_steps=2
  sail-train config stage=align model=tiny engine=zero2
"""

COMMENT_COLUMN = 64


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="sail-train config",
        description="Prints the composed config as YAML, with the file or override each value comes from.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_options(parser)
    options = parser.parse_intermixed_args(arguments)
    configs = Configs(folders=(CONFIGS, *options.config_dir))
    request = parse_tokens(options.tokens)
    if request.stage is not None:
        lines = list(annotated(resolve(configs, request)))
    elif request.recipe is not None:
        lines = list(_entries(configs, request.recipe))
    else:
        lines = list(_catalogue(configs))
    Console(soft_wrap=True, markup=False, highlight=False, emoji=False).print("\n".join(lines))
    return 0


def annotated(job: Job) -> Iterator[str]:
    """YAML lines of the job's config, each leaf with a comment on its origin."""
    yield f"# {job.name}: runs in {job.run_dir}" + (f", reads {', '.join(job.needs)}" if job.needs else "")
    yield from _lines(job.written, job.origins, path="", depth=0)


def _lines(mapping: Mapping[str, Any], origins: Mapping[str, str], *, path: str, depth: int) -> Iterator[str]:
    for key, value in mapping.items():
        dotted = f"{path}.{key}" if path else str(key)
        name = f"{'  ' * depth}{_scalar(key)}:"
        if isinstance(value, Mapping) and value:
            yield name
            yield from _lines(value, origins, path=dotted, depth=depth + 1)
        else:
            yield f"{name} {_scalar(value)}".ljust(COMMENT_COLUMN) + f"  # {_origin(dotted, origins)}"


def _origin(dotted: str, origins: Mapping[str, str]) -> str:
    """Where a leaf comes from; a whole list or mapping may have been set at once, above it."""
    while dotted:
        if dotted in origins:
            return origins[dotted]
        dotted = dotted.rpartition(".")[0]
    return "default"


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=100_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _entries(configs: Configs, name: str) -> Iterator[str]:
    recipe = load_recipe(configs, name)
    yield f"# recipe {name}: {recipe.about}"
    for entry in recipe.entries:
        parents = ", ".join(f"{role}={parent}" for role, parent in entry.parents.items())
        gate = f"  gate: {entry.gate.metric} >= {entry.gate.min}" if entry.gate else ""
        yield f"{entry.name:<16} stage={entry.stage:<12} {parents}{gate}".rstrip()


def _catalogue(configs: Configs) -> Iterator[str]:
    for group in ("recipe", "stage", "model", "data", "engine", "launcher"):
        yield f"{group}: {', '.join(configs.names(group))}"
