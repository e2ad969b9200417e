"""ruff and the type checker pass, and what is imported is declared."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "hydra-core": "hydra", "jinja2": "jinja2"}
"""Import name of those distributions whose own name is another."""


def check(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_passes() -> None:
    check("ruff", "check", "--no-cache", ".")


def test_mypy_passes() -> None:
    check("mypy")


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\[<>=~! ]", line)[0].lower() for line in project["dependencies"]}
    return {MODULES.get(name, name).replace("-", "_") for name in names}


def test_every_import_is_declared() -> None:
    found: dict[str, Path] = {}
    for path in (ROOT / "sail_train").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {name.partition(".")[0]: path for name in names}
    # jinja2 and math-verify are built on these; the last are of extras, asked for first
    brought = {"sail_train", "markupsafe", "latex2sympy2_extended"}
    brought |= {"flash_attn", "av", "aiohttp", "datasets", "fsspec", "isal", "matplotlib"}
    unknown = {name: path for name, path in found.items() if name not in declared() | brought | sys.stdlib_module_names}
    assert not unknown, "declare them in pyproject.toml"


def test_every_dependency_is_pinned_and_used() -> None:
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["video"], *extras["synth"], *extras["fast"]]
    names = {re.split(r"[\[<>=~! ]", line)[0].lower() for line in wanted}
    assert names <= pins, "pin them in constraints.txt"
    source = "\n".join(path.read_text() for path in (ROOT / "sail_train").rglob("*.py"))
    used = r"^\s*(import|from) (torch\.utils\.)?"  # tensorboard is used through torch
    unused = {name for name in declared() if not re.search(rf"{used}{name}\b", source, re.MULTILINE)}
    assert not unused, "nothing imports them"
