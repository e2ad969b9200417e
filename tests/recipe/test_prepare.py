"""Preparation: done once, and never silently with other options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sail_train.recipe import prepare as module
from sail_train.recipe.prepare import prepare


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every call of a step that makes data."""
    calls: list[dict[str, Any]] = []

    def synth(out: Path, *, seed: int = 0, slip: float = 0.5) -> None:
        calls.append({"seed": seed, "slip": slip})
        out.mkdir(parents=True)
        (out / "synth.json").write_text(json.dumps(calls[-1]))

    monkeypatch.setattr(module, "_function", lambda path: synth)
    return calls


def test_a_step_runs_when_its_output_is_missing(tmp_path: Path, made: list[dict[str, Any]]) -> None:
    for _ in range(2):
        prepare([{"synth": {"slip": 0.25}}], tmp_path / "data")
    assert made == [{"seed": 0, "slip": 0.25}]


def test_other_options_are_refused(tmp_path: Path, made: list[dict[str, Any]]) -> None:
    prepare([{"synth": {}}], tmp_path / "data")
    with pytest.raises(ValueError, match=r"was made with other options \(slip: 0.5 -> 0.25\); set data_dir="):
        prepare([{"synth": {"slip": 0.25}}], tmp_path / "data")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"snyth": {}}, "prepare='snyth' is none of synth; did you mean 'synth'"),
        ({"synth": {"slpi": 1}}, "prepare.synth.slpi: unknown option; did you mean 'slip'"),
    ],
)
def test_an_unknown_step_or_option_is_named(
    tmp_path: Path, made: list[dict[str, Any]], step: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare([step], tmp_path / "data")
    assert made == []


def test_every_step_leads_to_a_function_with_options() -> None:
    for path, _ in module.STEPS.values():
        assert module._options("x", module._function(path), {})
