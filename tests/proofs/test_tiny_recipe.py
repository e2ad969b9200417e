"""The tiny recipe reaches its marks on each of three seeds, with 512 held-out prompts a suite, and the blind control
gains nothing. About half an hour a seed on two cores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _run(workplace: Path, *tokens: str) -> None:
    command = [sys.executable, "-m", "sail_train.cli", "run", *tokens, "--no-gates"]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_mark_is_reached(seed: int, tmp_path: Path) -> None:
    _run(tmp_path, "recipe=tiny", f"seed={seed}", "recipe_dir=runs/tiny")
    _run(tmp_path, "recipe=tiny_blank", f"seed={seed}", "recipe_dir=runs/tiny-blank")
    marks = subprocess.run(
        [sys.executable, ROOT / "scripts/bench/tiny_marks.py", "runs/tiny"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert marks.returncode == 0, marks.stdout + marks.stderr
