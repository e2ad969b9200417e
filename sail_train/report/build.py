"""From a recipe's directory to report.html: one file, without a network, that shows even a run that failed.

Everything that came from a run (names, prompts, answers, messages) is escaped by Jinja's autoescape or by
`svg.element`; the page also forbids itself, by a content security policy, every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sail_train.report import SECTIONS
from sail_train.report.formats import FILTERS
from sail_train.report.reading import Recipe, read_recipe

TEMPLATES = Path(__file__).parent / "templates"


def build_report(recipe_dir: str | Path, *, output: str | Path | None = None) -> Path:
    """Writes the report of the runs in `recipe_dir` and returns its path (default: report.html in that directory).

    Raises ValueError if `recipe_dir` holds no run; whatever else is missing or broken is named on the page.
    """
    recipe = read_recipe(Path(recipe_dir))
    path = Path(output) if output is not None else recipe.path / "report.html"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(render(recipe), encoding="utf-8")
    partial.replace(path)
    return path


def render(recipe: Recipe) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= FILTERS
    sections = {name: _section(name, recipe) for name in SECTIONS}
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        recipe=recipe,
        titles=SECTIONS,
        sections={name: context for name, context in sections.items() if context is not None},
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _section(name: str, recipe: Recipe) -> dict[str, Any] | None:
    return importlib.import_module(f"sail_train.report.sections.{name}").build(recipe)
