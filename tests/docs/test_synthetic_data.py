"""What docs/synthetic_data.md says of the engines is what they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from sail_train.data.synth.engines import ENGINES
from sail_train.data.synth.engines.item import LEVELS
from sail_train.data.synth.generate import SynthConfig
from sail_train.rewards import VERIFIERS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "synthetic_data.md").read_text()


def test_every_engine_has_its_rows() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert rows == [*ENGINES, *ENGINES], "one in each table, in order"
    assert f"| engine | {' | '.join(LEVELS)} |" in PAGE
    graded = {name for row in re.findall(r"^\| `\w+` .*\| ([^|]*) \|$", PAGE, re.MULTILINE) for name in
              re.findall(r"`(\w+)`", row)}  # fmt: skip
    assert graded - {"difference"} <= set(VERIFIERS)


def test_the_commands_are_ones_that_are_taken() -> None:
    """Each with its engine, its options as the config has them, and a folder."""
    commands = [shlex.split(line) for line in PAGE.splitlines() if line.startswith("sail-train data synth ")]
    assert len(commands) == 3
    for words in commands:
        options = dict(zip(words[4:-1:2], words[5:-1:2], strict=True))
        options.pop("--jobs", None)
        known = {name.removeprefix("--"): value for name, value in options.items()}
        numbers = {name: int(value) for name, value in known.items() if name in ("count", "seed")}
        assert SynthConfig(**({"engine": words[3]} | known | numbers)).engine in ENGINES
