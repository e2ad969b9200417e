"""Jobs: where an entry runs, what it starts from, what a recipe's graph may not say."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from sail_train.config import to_dataclass
from sail_train.job.compose import Configs
from sail_train.job.config import Entry, Gate, LauncherConfig, Recipe
from sail_train.job.job import Job, load_recipe, resolve
from sail_train.job.overrides import parse_tokens


def job(configs: Configs, *tokens: str) -> Job:
    return resolve(configs, parse_tokens(tokens))


def test_a_stage_by_itself_runs_in_adhoc(configs: Configs) -> None:
    one = job(configs, "stage=first", "parent=runs/x", "train.max_steps=2")
    assert str(one.run_dir) == "runs/adhoc/first" and one.config.recipe_dir == "runs/adhoc"
    assert one.config.parents == {"model": "runs/x"}
    assert one.config.train.max_steps == 2
    assert one.recipe is None and one.gate is None and one.needs == ()


def test_a_stage_by_itself_may_run_elsewhere(configs: Configs) -> None:
    one = job(configs, "stage=first", "run_dir=out/here")
    assert str(one.run_dir) == "out/here" and one.config.recipe_dir == "out"


def test_a_stage_that_needs_a_parent_says_so(configs: Configs) -> None:
    with pytest.raises(ValueError, match=r"parents\.model: must be given; set parents\.model="):
        job(configs, "stage=needy")
    assert job(configs, "stage=needy", "parent=x").config.parents == {"model": "x"}


def test_an_entry_runs_in_its_recipe_with_its_parents_and_overrides(configs: Configs) -> None:
    one = job(configs, "recipe=two", "stage=again")
    assert str(one.run_dir) == "runs/two/again"
    assert one.stage == "second" and one.needs == ("first",)
    assert one.config.parents == {"model": "runs/two/first"}
    assert one.config.train.save_every == 6 and one.config.train.max_steps == 9
    assert one.config.engine.zero_stage == 2
    assert one.config.optim.lr == {"adapter": 1e-3, "vision": 0.5}
    assert one.config.seed == 10
    assert one.origins["train.save_every"] == "configs/recipe/two.yaml: again"
    first = job(configs, "recipe=two", "stage=first")
    assert first.config.train.save_every == 5 and first.gate == Gate(metric="read/greedy", min=0.5)


def test_the_command_line_wins_over_the_recipe(configs: Configs) -> None:
    one = job(configs, "recipe=two", "stage=again", "train.save_every=1", "engine=plain", "seed=2", "recipe_dir=out/r")
    assert one.config.train.save_every == 1 and one.config.engine.zero_stage == 0
    assert one.config.seed == 12, "the entry's offset stays"
    assert str(one.run_dir) == "out/r/again" and one.config.parents == {"model": "out/r/first"}


def test_an_entry_needs_what_its_values_name_too(configs: Configs) -> None:
    one = job(configs, "recipe=two", "stage=reader")
    assert one.needs == ("first", "again")
    assert one.config.parents == {"vision": "runs/two/again", "language": "elsewhere/model"}


def test_what_is_written_keeps_references_to_the_environment(configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAIL_TEST_NAME", "hunter2")
    one = job(configs, "stage=first", "log.project=${oc.env:SAIL_TEST_NAME}")
    assert one.config.log.project == "hunter2"
    assert "hunter2" not in yaml.safe_dump(one.written)
    assert one.written["log"]["project"] == "${oc.env:SAIL_TEST_NAME}"
    assert one.written["train"]["keep"] == one.config.train.keep, "defaults are written down"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["train.max_steps=2"], "which stage.*first, needy, second"),
        (["stage=frist"], "stage='frist': there is no such stage; did you mean 'first'"),
        (["recipe=two"], "recipe=two: which entry.*first, again, reader"),
        (["recipe=tow", "stage=first"], "recipe='tow': there is no such recipe; did you mean 'two'"),
        (["recipe=two", "stage=agian"], "stage='agian': recipe two has no such entry; did you mean 'again'"),
        (["recipe=two", "stage=first", "run_dir=x"], "run_dir=x: an entry of a recipe runs in"),
        (["stage=first", "data.sources.caption.wieght=2"], r"data\.sources\.caption\.wieght: unknown key.*'weight'"),
        (["stage=first", "++trian.max_steps=2"], "trian: unknown key; did you mean 'train'"),
        (["stage=first", "data.seq_length.x=1"], r"data\.seq_length=\{'x': 1\} should be a whole number"),
        (["stage=first", "train.max_steps=two"], r"train\.max_steps='two' should be a whole number"),
        (["stage=first", "loop=suprvised"], "loop='suprvised' is none of .*did you mean 'supervised'"),
        (["stage=first", "launcher.nproc=0"], r"launcher\.nproc=0 must be at least 1"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(configs: Configs, tokens: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        job(configs, *tokens)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"entries": []}, "entries is empty"),
        ({"entries": [{"name": "a"}, {"name": "a"}]}, "two entries are named 'a'"),
        ({"entries": [{"name": "a", "parents": {"model": "b"}}]}, "'b' is no entry; known: a"),
        ({"entries": [{"name": "a", "parents": {"model": "a"}}]}, "is the entry itself"),
        (
            {"entries": [{"name": "a", "parents": {"model": "b"}}, {"name": "b", "parents": {"model": "a"}}]},
            "a: parents.model='b' comes later in the recipe",
        ),
        ({"entries": [{"name": "a/b"}]}, "name='a/b' must be a plain folder name"),
        ({"entries": [{"name": "a", "services": ["jugde"]}]}, "services='jugde' is none of judge"),
        ({"entries": [{"name": "a", "gate": {"metric": "x"}}]}, r"entries\[0\].gate.min: missing"),
        ({"entires": []}, "entires: unknown key; did you mean 'entries'"),
    ],
)
def test_a_recipes_graph_is_checked_before_anything_runs(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        to_dataclass(Recipe, recipe)
    assert message.replace("\\", "") in str(error.value).replace("\\", "")


def test_a_recipe_names_the_entry_whose_stage_is_unknown(configs: Configs) -> None:
    (configs.folders[0] / "recipe" / "bad.yaml").write_text("entries: [{name: x, stage: frist}]\n")
    with pytest.raises(ValueError, match="recipe bad: x: there is no stage 'frist'; did you mean 'first'"):
        load_recipe(configs, "bad")
    (configs.folders[0] / "recipe" / "worse.yaml").write_text("entries: []\n")
    with pytest.raises(ValueError, match="recipe worse: .*entries is empty"):
        load_recipe(configs, "worse")


def test_an_entry_may_start_from_a_folder(configs: Configs) -> None:
    recipe = Recipe(name="r", entries=[Entry(name="a", parents={"model": "some/folder"})])
    assert recipe.entry("a").stage == "a"


def test_a_service_sets_the_values_by_which_a_loop_starts_it(configs: Configs) -> None:
    text = (
        "entries:\n  - {name: first, services: [judge]}\n"
        "  - {name: second, services: [judge], overrides: {rewards.judge.url: 'http://x'}}\n"
    )
    (configs.folders[0] / "recipe" / "judged.yaml").write_text(text)
    assert job(configs, "recipe=judged", "stage=first").config.rewards.judge.url == "embedded"
    assert job(configs, "recipe=judged", "stage=second").config.rewards.judge.url == "http://x"


@pytest.mark.parametrize(
    ("metric", "fine"), [("read/greedy", True), ("read/greedy_digits", True), ("raed/greedy", False)]
)
def test_a_gate_on_what_is_never_measured_is_refused(configs: Configs, metric: str, fine: bool) -> None:
    (configs.folders[0] / "recipe" / "gated.yaml").write_text(
        f"entries: [{{name: first, gate: {{metric: {metric}, min: 0.1}}}}]\n"
    )
    if fine:
        assert job(configs, "recipe=gated", "stage=first").gate is not None
        return
    with pytest.raises(ValueError, match="metric='raed/greedy' is not asked for by eval.modes; did you mean 'read"):
        job(configs, "recipe=gated", "stage=first")
    with pytest.raises(ValueError, match="is not asked for by eval.modes; set eval.modes.SUITE"):
        job(configs, "recipe=gated", "stage=first", "~eval.modes.read")


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"read/greedy": 0.5}, None),
        ({"read/greedy": 0.49}, "read/greedy is 0.49, below 0.5"),
        ({"read/greedy": float("nan")}, "read/greedy is nan, below 0.5"),
        ({"read/t1": 0.9}, "read/greedy was not measured; known: read/t1"),
    ],
)
def test_a_gate_opens_at_its_floor(metrics: dict[str, float], why: str | None) -> None:
    assert Gate(metric="read/greedy", min=0.5).check(metrics) == why


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "slrum"}, "launcher.kind='slrum': did you mean 'slurm'"),
        ({"nodes": 2}, "launcher.nodes=2 needs launcher=slurm"),
        ({"gpus_per_node": -1}, "launcher.gpus_per_node=-1 must be 0"),
        ({"extra": ["exclusive"]}, "'exclusive' is no option of sbatch"),
    ],
)
def test_a_launcher_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LauncherConfig(**values)
