"""scripts/bench/attention.py: a table of every backend that runs here, with small errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench" / "attention.py"


def test_the_bench_compares_what_runs_and_says_why_the_rest_does_not() -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tokens", "100", "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\w+) \|.*\| (\S+) \| (\S+) \|$", done.stdout, re.MULTILINE)
    measured = [(name, error, gradient) for name, error, gradient in rows if name != "backend"]
    assert [name for name, *_ in measured] == ["flex", "sdpa", "eager"] * 3
    # fp32 against float64: a share of a few 2^-24, of sums of some hundred values
    assert all(float(error) < 1e-5 for _, error, _ in measured)
    assert [gradient for name, _, gradient in measured if name == "flex"] == ["none"] * 3
    assert all(float(gradient) < 1e-5 for name, _, gradient in measured if name != "flex")
    assert done.stdout.count("\nflash: ") == done.stdout.count("\nvarlen: ") == 3
