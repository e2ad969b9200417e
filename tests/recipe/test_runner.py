"""Recipes from first to last: order, skipping, stopping, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sail_train.job.compose import Configs
from sail_train.job.overrides import parse_tokens
from sail_train.job.state import Conduct
from sail_train.recipe.launcher import Call
from sail_train.recipe.runner import run_recipe

RECIPE = """
entries:
  - {name: one, stage: first, gate: {metric: read/greedy, min: 0.5}}
  - {name: two, stage: second, parents: {model: one}}
  - {name: three, stage: second, parents: {vision: two, language: one}}
"""


@pytest.fixture(autouse=True)
def recipe(configs: Configs, workplace: Path) -> None:
    (configs.folders[0] / "recipe" / "chain.yaml").write_text(RECIPE)


def run(configs: Configs, *tokens: str, **options: Any) -> int:
    request = parse_tokens(["recipe=chain", *tokens])
    conduct = Conduct(force=request.force, explicit=request.stage is not None)
    return run_recipe(configs, request, Call(tokens=tuple(tokens)), conduct=conduct, **options)


def summary() -> list[dict[str, Any]]:
    return json.loads(Path("runs/chain/summary.json").read_text())


def statuses(entries: Sequence[dict[str, Any]]) -> list[str]:
    return [entry["status"] for entry in entries]


def test_entries_run_in_order_and_hand_their_models_on(
    configs: Configs, loop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(configs) == 0
    assert loop.trained == ["one", "two", "three"]
    assert loop.configs[2].parents == {"vision": "runs/chain/two", "language": "runs/chain/one"}
    entries = summary()
    assert [entry["stage"] for entry in entries] == ["one", "two", "three"]
    assert entries[2] == {
        "stage": "three",
        "loop": "supervised",
        "status": "finished",
        "steps": 9,
        "tokens": 1000,
        "seconds": 2.5,
        "metrics_before": {"read/greedy": 0.1},
        "metrics_after": {"read/greedy": 0.9, "read/greedy_se": 0.01},
        "parent": "two, one",
        "model_dir": "runs/chain/three/model",
    }
    told = capsys.readouterr().out
    assert "read/greedy" in told and "0.100" in told and "0.900" in told and "3,000" in told
    assert "report: runs/chain/report.html" in told and "took 0 min" in told
    assert Path("runs/chain/report.html").stat().st_size > 1000


def test_what_is_finished_is_skipped(configs: Configs, loop: Any) -> None:
    run(configs)
    assert run(configs) == 0
    assert loop.trained == ["one", "two", "three"]


def test_a_stopped_run_ends_it_and_the_same_command_goes_on(
    configs: Configs, loop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    loop.stop_at = "two"
    assert run(configs) == 75
    assert statuses(summary()) == ["finished", "stopped", "not started"]
    assert "the same command goes on from there" in capsys.readouterr().out
    loop.stop_at = None
    assert run(configs) == 0
    assert loop.trained == ["one", "two", "two", "three"]


def test_a_shut_gate_stops_it(configs: Configs, loop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    loop.metrics = {"read/greedy": 0.4}
    assert run(configs) == 3
    assert loop.trained == ["one"] and statuses(summary()) == ["gate", "not started", "not started"]
    assert "the gate after one is shut: read/greedy is 0.4, below 0.5" in capsys.readouterr().err


def test_gates_may_be_left_unasked(configs: Configs, loop: Any) -> None:
    loop.metrics = {"read/greedy": 0.4}
    assert run(configs, gates=False) == 0
    assert statuses(summary()) == ["finished"] * 3


def test_an_interrupt_leaves_table_and_summary(configs: Configs, loop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(configs, until="one")
    loop.error = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        run(configs)
    assert statuses(summary()) == ["finished", "unfinished", "not started"]
    assert "report: runs/chain/report.html" in capsys.readouterr().out


def test_until_names_the_last_entry(configs: Configs, loop: Any) -> None:
    assert run(configs, until="two") == 0
    assert loop.trained == ["one", "two"]
    with pytest.raises(ValueError, match="stage='thre': recipe chain has no such entry; did you mean 'three'"):
        run(configs, until="thre")


def test_one_entry_can_be_run_by_name(configs: Configs, loop: Any) -> None:
    run(configs)
    assert run(configs, "stage=two", "force=true") == 0
    assert loop.trained == ["one", "two", "three", "two"]
    assert statuses(summary()) == ["finished"] * 3


def test_an_entry_whose_parent_was_trained_anew_says_so(
    configs: Configs, loop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run(configs)
    run(configs, "stage=one", "force=true", "seed=4")
    capsys.readouterr()
    assert run(configs, "seed=4") == 2
    told = capsys.readouterr().err
    assert "parents.model: the model of runs/chain/one changed" in told and "seed: 0 -> 4" in told
    assert run(configs, "seed=4", "force=true") == 0
    assert loop.trained[-3:] == ["one", "two", "three"]


def test_an_entry_trained_anew_to_the_same_bits_changes_nothing_after_it(configs: Configs, loop: Any) -> None:
    run(configs)
    run(configs, "stage=one", "force=true")
    assert run(configs) == 0
    assert loop.trained == ["one", "two", "three", "one"]


def test_values_reach_every_entry_and_the_directory_may_be_another(configs: Configs, loop: Any) -> None:
    assert run(configs, "train.max_steps=2", "recipe_dir=runs/smoke") == 0
    assert [config.train.max_steps for config in loop.configs] == [2, 2, 2]
    assert Path("runs/smoke/summary.json").is_file() and not Path("runs/chain").exists()


def test_nothing_runs_before_every_entry_is_checked(configs: Configs, loop: Any) -> None:
    (configs.folders[0] / "recipe" / "chain.yaml").write_text(
        "entries:\n  - {name: one, stage: first}\n  - {name: two, stage: second, overrides: {train.max_stpes: 3}}\n"
    )
    with pytest.raises(ValueError, match=r"train\.max_stpes: unknown key; did you mean 'max_steps'"):
        run(configs)
    assert loop.trained == []
