"""What docs/extending.md shows is taken from the page and run."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from sail_train import data, rewards
from sail_train.config import to_dataclass
from sail_train.data.conversation import parse as parse_messages
from sail_train.eval.config import EvalConfig
from sail_train.job.compose import CONFIGS, Configs
from sail_train.job.job import load_recipe, resolve
from sail_train.job.overrides import parse_tokens
from sail_train.rewards import verify
from sail_train.rl import objectives
from sail_train.rl.config import RLConfig
from sail_train.rl.objectives.objective import Objective
from sail_train.types import BadSample, RawSample

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text()


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that the page shows under a first line "# sail_train/....py", importable for the test."""
    path = f"sail_train/{name}.py"
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if path in block[:80])
    made = types.ModuleType(path.removesuffix(".py").replace("/", "."))
    monkeypatch.setitem(sys.modules, made.__name__, made)
    exec(compile(code, path, "exec"), made.__dict__)  # our own page
    return made


def yaml_file(name: str, folder: Path) -> None:
    """The YAML that follows a line "`mine/NAME`:" of the page."""
    text = PAGE.partition(f"`mine/{name}`:")[2].partition("```yaml\n")[2].partition("```")[0]
    assert text
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def test_the_stage_and_the_recipe_compose(tmp_path: Path) -> None:
    yaml_file("stage/charts.yaml", tmp_path)
    yaml_file("recipe/charts.yaml", tmp_path)
    configs = Configs(folders=(CONFIGS, tmp_path))
    config = resolve(configs, parse_tokens(["stage=charts", "parent=runs/tiny/pretrain"])).config
    assert config.data.sources["receipts"].weight == 0.2 and config.data.sources["shapes"].weight == 0
    assert config.data.sources["read"].weight > 0, "what is not named stays as it was"
    assert config.eval.modes["chart"] == ["greedy", "t1"] and "basic" not in config.eval.modes
    assert [entry.name for entry in load_recipe(configs, "charts").entries] == ["charts", "charts_rl"]
    job = resolve(configs, parse_tokens(["recipe=charts", "stage=charts_rl"]))
    assert job.config.parents == {"model": "runs/charts/charts"} and job.config.train.max_steps == 20


def test_the_suites_are_a_config() -> None:
    import yaml

    text = PAGE.partition("## A held-out suite")[2].partition("```yaml\n")[2].partition("```")[0]
    config = to_dataclass(EvalConfig, yaml.safe_load(text)["eval"])
    assert config.suites["receipts_blind"].blank_images and config.modes["receipts"] == ["greedy", "t1"]


@pytest.mark.parametrize(
    ("said", "value", "status"),
    [("XIV", 1.0, "ok"), ("14", 1.0, "ok"), ("xvi", 0.0, "ok"), ("fourteen", 0.0, "unparsable")],
)
def test_the_reward_grades(monkeypatch: pytest.MonkeyPatch, said: str, value: float, status: str) -> None:
    module("rewards/roman", monkeypatch)
    monkeypatch.setitem(rewards.VERIFIERS, "roman", "sail_train.rewards.roman:roman")
    score = verify("roman", "14", f"<think>\nfourteen\n</think>\n\n\\boxed{{{said}}}")
    assert (score.value, score.status) == (value, status)
    assert verify("roman", "many", "14").failed


def test_the_format_reads_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    made = module("data/two_lines", monkeypatch)
    assert set(data.FORMATS) >= {"messages", "caption"} and callable(parse_messages)
    raw = RawSample(key="k", source="s", shard="a.tar", offset=0, members={"txt": b"Which?\nThis.\n"})
    conversation = made.parse(raw)
    assert conversation.prompt[0].text == "Which?" and conversation.answer == "This."
    with pytest.raises(BadSample, match="not_two_lines"):
        made.parse(RawSample(key="k", source="s", shard="a.tar", offset=0, members={"txt": b"Which?"}))


def test_the_objective_has_the_plain_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    made = module("rl/objectives/plain", monkeypatch)
    monkeypatch.setitem(objectives.OBJECTIVES, "plain", "sail_train.rl.objectives.plain")
    objective = Objective(RLConfig(objective="plain"))
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -2.0])
    batch: Any = types.SimpleNamespace(advantages=advantages, old_logprobs=logprobs.detach())
    token = made.token_loss(logprobs, batch, objective.clip)
    token.values.sum().backward()
    assert logprobs.grad is not None and torch.equal(logprobs.grad, -advantages)
    assert not token.clipped.any()


def test_every_table_the_page_names_is_there() -> None:
    import importlib

    for table, place in {
        "VERIFIERS": "rewards", "FORMATS": "data", "OBJECTIVES": "rl.objectives", "ADVANTAGES": "rl.advantage",
        "ENGINES": "rl.rollout", "MODES": "eval.config", "SECTIONS": "report", "LOOPS": "loops", "COMMANDS": "commands",
    }.items():  # fmt: skip
        assert getattr(importlib.import_module(f"sail_train.{place}"), table)
        assert f"`{table}`" in PAGE
