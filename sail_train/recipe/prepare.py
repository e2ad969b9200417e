"""What must lie there before the first entry: each step of a recipe's `prepare`, run when its output is missing.

A step leaves a file with the options it was run with; other options later are refused, since the runs that
stand on the data would silently mean something else.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sail_train.config import choice, suggestion
from sail_train.job.lineage import read_json

STEPS = {"synth": ("sail_train.data.synth.run:synthesize", "synth.json")}
"""Name -> "module:function", called with the data directory and the options; and the file that it leaves there."""

log = logging.getLogger(__name__)


def prepare(steps: Sequence[Mapping[str, Mapping[str, Any]]], data_dir: Path) -> None:
    """Runs the steps whose output is not in `data_dir` yet."""
    for step in steps:
        for name, options in step.items():
            path, file = choice("prepare", name, STEPS)
            function = _function(path)
            wanted = _options(name, function, options)
            made = read_json(data_dir / file)
            if made is None:
                log.info("%s into %s", name, data_dir)
                function(data_dir, **options)
            else:
                _compare(name, wanted, made, data_dir)


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _options(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of the step: those given over the function's own defaults."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    known = {parameter.name: parameter.default for parameter in parameters}
    for key in given:
        if key not in known:
            raise ValueError(f"prepare.{name}.{key}: unknown option; {suggestion(key, known)}")
    return {**known, **given}


def _compare(name: str, wanted: Mapping[str, Any], made: Mapping[str, Any], data_dir: Path) -> None:
    other = [f"{key}: {made[key]} -> {value}" for key, value in wanted.items() if key in made and made[key] != value]
    if other:
        raise ValueError(
            f"prepare.{name}: {data_dir} was made with other options ({'; '.join(other)}); "
            "set data_dir=... to another place, or take the directory away"
        )
