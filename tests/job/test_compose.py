"""Composition: who wins, where a value comes from, and what never reaches a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from sail_train.job.compose import CONFIGS, Composed, Configs, Layer, read_yaml, redacted
from sail_train.job.overrides import parse_tokens


def compose(configs: Configs, *tokens: str, stage: str = "first") -> Composed:
    request = parse_tokens(tokens)
    layer = Layer(label="command line", assignments=request.assignments)
    return configs.compose(stage=stage, groups=request.groups, layers=[layer])


def test_a_stage_wins_over_its_groups_and_what_it_extends(configs: Configs) -> None:
    values = compose(configs, "model=large", stage="second").resolved()
    assert values["model"]["vision"]["hidden_size"] == 32
    assert values["train"] == {"max_steps": 9}
    assert values["data"]["seq_length"] == 64
    assert values["data"]["sources"]["caption"]["shards"] == "data/mine/train/*.tar"


@pytest.mark.parametrize("stage", ["align", "fusion"])
def test_files_are_merged_as_hydra_merges_them(stage: str) -> None:
    """Its own compose does the same at twice the cost, and does not tell which file a value comes from."""
    ours = Configs().compose(stage=stage, groups={"engine": "zero2"}, layers=[]).tree
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        theirs = hydra.compose("run", overrides=[f"stage={stage}", "engine=zero2"])
    assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs)


def test_a_value_on_top_wins_and_reaches_what_refers_to_it(configs: Configs) -> None:
    values = compose(configs, "data_dir=elsewhere", "train.keep=4", "data.sources.more.shards=x/{0..9}.tar").resolved()
    assert values["model"]["language"]["tokenizer"] == "elsewhere/tokenizer"
    assert values["train"] == {"max_steps": 7, "keep": 4}
    assert values["data"]["sources"]["more"] == {"shards": "x/{0..9}.tar"}


def test_a_key_can_be_taken_away_and_one_that_is_not_there_is_named(configs: Configs) -> None:
    assert compose(configs, "~data.sources.caption").resolved()["data"]["sources"] == {}
    with pytest.raises(ValueError, match=r"~data\.sources\.captoin: there is no such key.*'data\.sources\.caption'"):
        compose(configs, "~data.sources.captoin")


def test_every_leaf_knows_its_file_or_layer(configs: Configs, tmp_path: Path) -> None:
    origins = compose(configs, "train.max_steps=3", "optim.lr={adapter: 2, vision: 3}", stage="second").origins
    root = tmp_path / "configs"
    assert origins["train.max_steps"] == "command line"
    assert origins["optim.lr.vision"] == "command line"
    assert origins["loop"] == str(root / "stage" / "first.yaml")
    assert origins["model.vision.hidden_size"] == str(root / "model" / "small.yaml")
    assert origins["data.seq_length"] == str(root / "data" / "mine.yaml")
    assert "data.sources.caption.shards" not in compose(configs, "~data.sources.caption").origins


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["model=lrage"], "model='lrage': there is no such model; did you mean 'large'"),
        (["data=zzzz"], "data='zzzz': there is no such data; known: mine"),
        (["eval.modes.read.x=1"], "eval.modes.read.x=1 cannot be set"),
    ],
)
def test_what_cannot_be_composed_is_named(configs: Configs, tokens: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(configs, *tokens)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("train.keep=${nowhere}", "train.keep: Interpolation key 'nowhere' not found"),
        ("train.keep=${oc.env:SAIL_TEST_UNSET}", "train.keep: .*SAIL_TEST_UNSET"),
        ("train.keep='???'", "train.keep: must be given; set train.keep="),
    ],
)
def test_what_cannot_be_resolved_is_named(configs: Configs, token: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(configs, token).resolved()


def test_a_broken_file_is_named(configs: Configs) -> None:
    broken = configs.folders[0] / "stage" / "broken.yaml"
    broken.write_text("loop: [supervised\n")
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        compose(configs, stage="broken")
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        read_yaml(broken)
    (configs.folders[0] / "recipe" / "broken.yaml").write_text("entries: [\n")
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        configs.load("recipe", "broken")
    (configs.folders[0] / "recipe" / "list.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match=r"list\.yaml: should be a mapping"):
        configs.load("recipe", "list")


def test_a_folder_of_ones_own_adds_to_the_shipped_ones(configs: Configs, tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "stage" / "sub").mkdir(parents=True)
    (own / "stage" / "sub" / "third.yaml").write_text("# @package _global_\ndefaults: [/stage/first]\nseed: 3\n")
    both = Configs(folders=(*configs.folders, own))
    assert both.names("stage") == ["first", "needy", "second", "sub/third"]
    composed = compose(both, stage="sub/third")
    assert composed.resolved()["seed"] == 3
    assert composed.origins["seed"] == str(own / "stage" / "sub" / "third.yaml")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--config-dir .*nowhere: no such folder"):
        Configs(folders=(tmp_path / "nowhere",))


def test_the_environment_is_read_for_the_run_and_for_nothing_else(
    configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAIL_TEST_PROJECT", "hunter2")
    monkeypatch.setenv("SAIL_TEST_STEPS", "12")
    composed = compose(
        configs,
        "log.project=${oc.env:SAIL_TEST_PROJECT}",
        "log.wandb=${log.project}-x",  # a secret may travel through a reference
        "train.max_steps=${oc.decode:${oc.env:SAIL_TEST_STEPS}}",
        "train.keep=${oc.decode:${oc.env:SAIL_TEST_KEEP,3}}",
    )
    values, masked = composed.resolved(), composed.masked()
    assert values["log"] == {"project": "hunter2", "wandb": "hunter2-x"}
    assert values["train"] == {"max_steps": 12, "keep": 3}
    assert "hunter2" not in str(masked)
    assert masked["log"] == {"project": "${oc.env:SAIL_TEST_PROJECT}", "wandb": "${oc.env:SAIL_TEST_PROJECT}-x"}
    assert masked["train"]["max_steps"] == "${oc.env:SAIL_TEST_STEPS}"
    # and the resolvers are Hydra's again
    assert composed.resolved() == values


@pytest.mark.parametrize(
    ("key", "value", "written"),
    [
        ("api_key", "sk-1", "<redacted>"),
        ("apikey", "sk-1", "<redacted>"),
        ("hf_token", "hf-1", "<redacted>"),
        ("password", "p", "<redacted>"),
        ("api_key", "", ""),
        ("api_key", None, None),
        ("api_key", "${oc.env:KEY}", "${oc.env:KEY}"),
        ("api_key_env", "JUDGE_API_KEY", "JUDGE_API_KEY"),
        ("max_new_tokens", 3, 3),
        ("loss", "token", "token"),
        ("tokenizer", "data/tokenizer", "data/tokenizer"),
        ("url", "https://me:secret@judge.example/v1", "https://<redacted>@judge.example/v1"),
    ],
)
def test_secrets_are_blanked_wherever_they_stand(key: str, value: Any, written: Any) -> None:
    assert redacted({"a": [{key: value}]}) == {"a": [{key: written}]}
