"""The code fingerprint: what a loop can reach counts, comments and the rest of the package do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sail_train.job import code

MODULES = {
    "__init__.py": "",
    "loops/__init__.py": "",
    "loops/plain.py": (
        '"""Doc."""\nfrom sail_train.data import TABLE\ndef run():\n    """Doc."""\n    import sail_train.late\n'
    ),
    "loops/other.py": "from sail_train.eval.grade import mark\n",
    "data/__init__.py": 'TABLE = {"a": "sail_train.data.lazy:parse"}\n',
    "data/lazy.py": "WIDTH = 3  # why\n",
    "late.py": "import os\n",
    "eval/__init__.py": "",
    "eval/grade.py": "mark = 1\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "sail_train"
    for name, text in MODULES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(code, "PACKAGE", root)
    forget()
    yield root
    forget()


def forget() -> None:
    for cached in (code.code_hash, code.reachable, code._mentioned, code._statements):
        cached.cache_clear()


def fingerprint() -> str:
    forget()
    return code.code_hash("sail_train.loops.plain")


def test_reach_follows_imports_in_functions_and_names_in_tables(package: Path) -> None:
    assert code.reachable("sail_train.loops.plain") == {
        "sail_train", "sail_train.loops", "sail_train.loops.plain", "sail_train.data", "sail_train.data.lazy",
        "sail_train.late",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "counts"),
    [
        ("data/lazy.py", "WIDTH = 4\n", True),
        ("late.py", "import sys\n", True),
        ("data/lazy.py", "# other words\nWIDTH  =  3\n", False),
        ("loops/plain.py", MODULES["loops/plain.py"].replace("Doc.", "Other words."), False),
        ("eval/grade.py", "mark = 2\n", False),
        ("loops/other.py", "mark = 2\n", False),
    ],
)
def test_only_statements_that_the_loop_reaches_count(package: Path, name: str, text: str, counts: bool) -> None:
    before = fingerprint()
    (package / name).write_text(text)
    assert (fingerprint() != before) is counts


def test_the_version_names_the_commit_if_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code.version.cache_clear()
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "sail_train")
    assert "+" not in code.version(), "no checkout around it"
    code.version.cache_clear()
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    assert "+" not in code.version(), "a checkout that git cannot read"
    code.version.cache_clear()
