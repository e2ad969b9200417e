"""What the first pages tell to type or to read is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sail_train.data.tools import inspect

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_page_is_listed_once() -> None:
    listed = re.findall(r"^- \[docs/(\w+\.md)\]", README, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_smoke_run_asks_no_gate() -> None:
    """A stage of two steps reaches no gate's mark, and the run would stop after the first that has one."""
    (line,) = (line for line in README.splitlines() if "smoke-runs" in line)
    assert "train.max_steps=2" in line and "--no-gates" in line and "recipe_dir=" in line


def test_the_example_of_inspect_names_data_that_the_tiny_recipe_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        inspect.run(["--help"])
    named = re.findall(r"data/tiny/train/(\w+)/", " ".join(capsys.readouterr().out.split()))
    configs = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "configs").rglob("*.yaml"))
    assert named and all(f"${{data_dir}}/train/{name}/" in configs for name in named)
