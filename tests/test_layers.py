"""The layers: a package imports only from rows below its own, absolutely, and no file grows past 400 lines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sail_train"
FILES = sorted(PACKAGE.rglob("*.py"))

ROWS = (
    ("config", "types", "dist", "cost"),
    ("visual",),
    ("processor", "model", "generate", "rewards", "engine"),
    ("data", "rl", "eval", "export", "auto"),
    ("loops",),
    # The row above all in the design's table, in the order in which its parts stand on each other.
    ("job", "report", "plan", "serve"),
    ("train",),
    ("recipe",),
    ("commands",),
    ("cli",),
)
"""From the bottom; what stands in one row is mutually blind."""

ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}

MAX_LINES = 400


def part(path: Path) -> str:
    """The package, or the module at the top, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, part of ours) of every import in a file, those inside functions too, and of every dotted name as text."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("sail_train."):
                yield node.lineno, name.split(".")[1]


def allowed(importer: str, imported: str) -> bool:
    return ROW_OF[imported] < ROW_OF[importer] or importer == imported


def test_every_part_has_a_row() -> None:
    parts = {part(path) for path in FILES} - {"__init__"}
    assert parts - set(ROW_OF) == set(), "give new parts a row in ROWS"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert not path.read_text().strip(), "sail_train/__init__.py imports nothing and says nothing"
        return
    wrong = [f"{path}:{line}: {part(path)} imports {name}" for line, name in imports(path)
             if not allowed(part(path), name)]  # fmt: skip
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported", "fine"),
    [
        ("loops", "data", True),
        ("data", "processor", True),
        ("processor", "model", False),
        ("rl", "eval", False),
        ("engine", "data", False),
        ("loops", "recipe", False),
        ("data", "data", True),
    ],
)
def test_the_table_says_what_the_design_says(importer: str, imported: str, fine: bool) -> None:
    assert allowed(importer, imported) is fine


def test_no_module_takes_part_in_an_import_cycle() -> None:
    graph = {_module(path): _top_level(path) for path in FILES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name in done:
            return
        for other in graph[name]:
            visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def _module(path: Path) -> str:
    dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


def _top_level(path: Path) -> set[str]:
    """Modules of ours that are imported when the file is: not inside functions, not for type checking only."""
    found: set[str] = set()
    known = {_module(file) for file in FILES}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                if name in known and name != _module(path):
                    found.add(name)
    # `from a.b import c` with c a module: the package a.b is only run, not waited for
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines; split it by what it does"


def test_packages_are_not_called_after_nothing() -> None:
    vague = {"utils", "common", "helpers", "core", "misc"}
    assert not [path for path in PACKAGE.rglob("*") if path.stem in vague]
