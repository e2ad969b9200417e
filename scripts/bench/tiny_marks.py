#!/usr/bin/env python
"""The tiny recipe's marks on one or several seeds: what was asked, what was reached, with standard errors.

    sail-train run recipe=tiny seed=1 recipe_dir=runs/tiny-1 --no-gates
    sail-train run recipe=tiny_blank seed=1 recipe_dir=runs/tiny-1-blank parents.model=runs/tiny-1/longcot
    scripts/bench/tiny_marks.py runs/tiny-1 ...        prints a markdown table; the blank control is found beside each

Exit code 1 if a mark is missed. `tests/proofs/test_tiny_recipe.py` runs all of it (`scripts/test --all`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

READ, ON, OFF, T1 = "read/greedy", "steps/on", "steps/off", "steps/on_t1"
AFTER_VISION = ("align", "pretrain", "sft_1", "sft_2", "sft_3", "sft_4a", "sft_4b", "soup", "longcot", "rlvr",
                "fusion", "mixed_rl")  # fmt: skip
DIRECT_STEPS = ("sft_2", "sft_3", "sft_4a", "sft_4b", "soup")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One thing that the recipe must reach."""

    name: str
    value: float
    """In points, or a share in percent."""
    floor: float
    error: float = 0.0
    """Standard error of `value`."""

    @property
    def reached(self) -> bool:
        return self.value >= self.floor

    def cell(self) -> str:
        return f"{self.value:.1f} ± {self.error:.1f}{'' if self.reached else ' **missed**'}"


class Run:
    """The summary of a recipe's directory."""

    def __init__(self, directory: Path) -> None:
        entries = json.loads((directory / "summary.json").read_text())
        if waiting := [entry["stage"] for entry in entries if entry["status"] != "finished"]:
            sys.exit(f"{directory}: not finished: {', '.join(waiting)}; run the recipe to its end first")
        self.entries = {entry["stage"]: entry for entry in entries}
        self.directory = directory

    def after(self, stage: str, metric: str) -> float:
        return 100 * self.entries[stage]["metrics_after"][metric]

    def error(self, stage: str, metric: str) -> float:
        return 100 * self.entries[stage]["metrics_after"][f"{metric}_se"]

    def gain(self, name: str, floor: float, later: tuple[str, str], earlier: tuple[str, str]) -> Mark:
        error = math.hypot(self.error(*later), self.error(*earlier))
        return Mark(name=name, value=self.after(*later) - self.after(*earlier), floor=floor, error=error)

    def level(self, name: str, floor: float, stage: str, metric: str) -> Mark:
        """A share, with its standard error where there is one."""
        metrics = self.entries[stage]["metrics_after"]
        error = self.error(stage, metric) if f"{metric}_se" in metrics else _binomial(metrics[metric], 512)
        return Mark(name=name, value=self.after(stage, metric), floor=floor, error=error)


def marks(run: Run, blank: Run | None) -> list[Mark]:
    """Every mark of the recipe, in the order of its stages."""
    worst = min(AFTER_VISION, key=lambda stage: run.after(stage, READ))
    found = [
        run.level("`vision` reads whole grids", 60, "vision", READ),
        run.gain("worst later stage reads, against `vision`", -10, (worst, READ), ("vision", READ)),
        run.level("`align` reads digits", 80, "align", f"{READ}_digits"),
        *_soup(run),
        run.level("`longcot` follows the format", 95, "longcot", f"{ON}_format"),
        run.gain("`rlvr` gains at temperature 1", 10, ("rlvr", T1), ("longcot", T1)),
        _best_earlier(run),
    ]
    if blank is not None:
        gain = blank.after("rlvr", T1) - run.after("longcot", T1)
        error = math.hypot(blank.error("rlvr", T1), run.error("longcot", T1))
        # a gain that must not exceed 2 is a loss that must be at least -2
        found.append(Mark(name="the same RL without sight loses", value=-gain, floor=-2, error=error))
    for stage in ("fusion", "mixed_rl"):
        for mode in (ON, OFF):
            found.append(run.level(f"`{stage}` follows {mode.partition('/')[2]}", 98, stage, f"{mode}_followed"))
    found += [
        run.gain("`fusion` thinking, against `rlvr`", -9, ("fusion", ON), ("rlvr", ON)),
        run.gain("`mixed_rl` thinking, against `rlvr`", -3, ("mixed_rl", ON), ("rlvr", ON)),
        run.gain("`fusion`: thinking beats not thinking", 10, ("fusion", ON), ("fusion", OFF)),
        run.gain("`mixed_rl`: thinking beats not thinking", 10, ("mixed_rl", ON), ("mixed_rl", OFF)),
        _think_reward(run),
    ]
    return found


def _binomial(share: float, number: int) -> float:
    return 100 * math.sqrt(share * (1 - share) / number)


def _soup(run: Run) -> list[Mark]:
    """The soup against the mean of its members, less one standard error."""
    found = []
    for metric in (READ, "steps/greedy", "frames/greedy"):
        members = [run.after(stage, metric) for stage in ("sft_4a", "sft_4b")]
        error = run.error("soup", metric)
        value = run.after("soup", metric) - sum(members) / len(members)
        found.append(Mark(name=f"`soup` against its members, {metric}", value=value, floor=-error, error=error))
    return found


def _best_earlier(run: Run) -> Mark:
    """RL's greedy accuracy against the best stage before it, however that was asked."""
    earlier = [(stage, "steps/greedy") for stage in DIRECT_STEPS] + [("longcot", ON)]
    best = max(earlier, key=lambda pair: run.after(*pair))
    return run.gain("`rlvr` greedy, against the best earlier stage", -2, ("rlvr", ON), best)


def _think_reward(run: Run) -> Mark:
    """The judge's mean verdict in the last rollout batches against the first ones."""
    lines = (run.directory / "mixed_rl" / "samples.jsonl").read_text().splitlines()
    by_batch: dict[int, list[float]] = {}
    for record in map(json.loads, lines):
        if record.get("phase") == "rollout" and (part := record["parts"].get("think")) and part["value"] is not None:
            by_batch.setdefault(record["rollout_batch"], []).append(part["value"])
    batches = [by_batch[number] for number in sorted(by_batch)]
    some = max(1, min(3, len(batches) // 2))
    first, last = (sum(part, []) for part in (batches[:some], batches[-some:]))
    value = 100 * (sum(last) / len(last) - sum(first) / len(first))
    return Mark(
        name="`mixed_rl` raises the think reward", value=value, floor=5, error=math.hypot(_sem(first), _sem(last))
    )


def _sem(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return 100 * math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) ** 2)


def table(directories: list[Path]) -> tuple[str, bool]:
    """A markdown table with a column for each directory, and whether every mark is reached."""
    columns = []
    for directory in directories:
        control = directory.with_name(directory.name + "-blank")
        blank = Run(control) if (control / "summary.json").is_file() else None
        columns.append({mark.name: mark for mark in marks(Run(directory), blank)})
    lines = [
        "| mark | floor | " + " | ".join(directory.name for directory in directories) + " |",
        "|---|---|" + "---|" * len(directories),
    ]
    for name, first in columns[0].items():
        cells = [column[name].cell() if name in column else "-" for column in columns]
        lines.append(f"| {name} | {first.floor:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines), all(mark.reached for column in columns for mark in column.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("directories", nargs="+", type=Path, help="directories of finished runs of recipe=tiny")
    text, reached = table(parser.parse_args().directories)
    sys.stdout.write(text + "\n")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
