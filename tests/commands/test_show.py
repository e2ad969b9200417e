"""`sail-train config`: YAML that means what was composed, with where each value comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sail_train.commands import show
from sail_train.job.compose import Configs
from sail_train.job.job import resolve
from sail_train.job.overrides import parse_tokens


def lines(configs: Configs, *tokens: str) -> list[str]:
    return list(show.annotated(resolve(configs, parse_tokens(tokens))))


def test_what_is_printed_is_the_config_as_yaml(configs: Configs) -> None:
    job = resolve(configs, parse_tokens(["recipe=two", "stage=again", "log.project='a: b # c'", "system='yes'"]))
    assert yaml.safe_load("\n".join(show.annotated(job))) == job.written


def test_every_value_names_its_origin(configs: Configs, tmp_path: Path) -> None:
    found = lines(configs, "recipe=two", "stage=again", "train.keep=3", "optim.betas=[0.8,0.9]")
    assert found[0] == "# again: runs in runs/two/again, reads first"
    origins = {line.split("#")[0].strip(): line.split("# ")[1] for line in found[1:] if "#" in line}
    assert origins["keep: 3"] == "command line"
    assert origins["betas: [0.8, 0.9]"] == "command line"
    assert origins["save_every: 6"] == "configs/recipe/two.yaml: again"
    assert origins["max_steps: 9"].endswith("stage/second.yaml")
    assert origins["zero_stage: 2"].endswith("engine/two.yaml")
    assert origins["log_every: 10"] == "default"
    assert origins["run_dir: runs/two/again"] == "the runner"


def test_secrets_are_not_printed(configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAIL_TEST_PROJECT", "hunter2")
    assert "hunter2" not in "\n".join(lines(configs, "stage=first", "log.project=${oc.env:SAIL_TEST_PROJECT}"))


def test_recipes_and_groups_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert show.run([]) == 0 and show.run(["recipe=tiny"]) == 0
    told = capsys.readouterr().out
    assert "recipe: tiny" in told and "vision           stage=vision" in told and "gate: read/greedy" in told
