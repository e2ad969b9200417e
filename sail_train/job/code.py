"""Which code made a result: a hash over just the modules that a loop can reach, comments and docstrings left out.

From the loop's module along its imports (also those inside functions) and along the dotted names that the packages'
tables hold as text. So editing the report, a comment or another loop's objective leaves a finished stage finished.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import re
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
DOTTED = re.compile(r"^sail_train(\.\w+)+(:\w+)?$")


@functools.cache
def code_hash(module: str) -> str:
    """Sha256 over the modules of ours that `module` ("sail_train.loops.rl") can reach, itself included."""
    digest = hashlib.sha256()
    for name in sorted(reachable(module)):
        path = _path(name)
        assert path is not None
        digest.update(f"{name}\n{_statements(path)}\n".encode())
    return digest.hexdigest()


@functools.cache
def reachable(module: str) -> frozenset[str]:
    """Names of our modules that `module` imports or names, directly or through others, and itself."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if name in found or path is None:
            continue
        found.add(name)
        waiting += _mentioned(path)
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # importing a.b runs a/__init__.py
    return frozenset(found)


def _path(name: str) -> Path | None:
    """The file of a module of ours; None if there is no such module (a function's name after its module's)."""
    root, *rest = name.split(".")
    if root != PACKAGE.name:
        return None
    stem = PACKAGE.joinpath(*rest)
    paths = ([stem.with_suffix(".py")] if rest else []) + [stem / "__init__.py"]
    return next((path for path in paths if path.is_file()), None)


@functools.cache
def _mentioned(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.match(node.value):
            names.append(node.value.partition(":")[0])
    return tuple(name for name in names if name.partition(".")[0] == "sail_train")


@functools.cache
def _statements(path: Path) -> str:
    """The code of a file as the parser writes it: no comments, no docstrings, one layout."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [item for item in body if not _is_text(item)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(ast.fix_missing_locations(tree))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@functools.cache
def version() -> str:
    """The package's version, and the commit if the code lies in a checkout: for people, never compared."""
    try:
        number = importlib.metadata.version("sail-train")
    except importlib.metadata.PackageNotFoundError:
        number = "0"
    if not (PACKAGE.parent / ".git").exists():
        return number
    command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return number
    return f"{number}+{done.stdout.strip()}"
