from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sail_train.report.build import render
from sail_train.report.names import gate, headline, passes
from sail_train.report.picking import KEPT, pick
from sail_train.report.reading import Recipe, Run, read_recipe
from sail_train.report.sections import accuracy, curves, mixture, notes, overview, samples, soup, stages, thinking


@pytest.fixture
def recipe(finished_recipe: Path) -> Recipe:
    return read_recipe(finished_recipe)


def run_of(recipe: Recipe, name: str) -> Run:
    found = recipe.run(name)
    assert found is not None
    return found


def answer(index: int, *, score: float | None = 1.0, mode: str = "greedy", **more: Any) -> dict[str, Any]:
    return {
        "kind": "eval",
        "suite": "s",
        "mode": mode,
        "index": index,
        "sample": 0,
        "score": score,
        "images": 0,
        **more,
    }


def test_the_headline_is_the_gates_metric_else_the_first_asked(recipe: Recipe) -> None:
    run = run_of(recipe, "mixed_rl")
    assert headline(run) == gate(run)["metric"] == "read/greedy"
    run.events = [{"event": "gate", "metric": "steps/on", "floor": 0.5, "value": 0.7, "passed": True}]
    assert headline(run) == "steps/on"
    run.events = []
    run.config["eval"]["modes"] = {"steps": ["off", "on"], "read": ["greedy"]}
    assert headline(run) == "steps/off"
    assert headline(run_of(recipe, "harvest")) is None


def test_accuracies_are_told_from_their_figures(recipe: Recipe) -> None:
    found = {one.metric for one in passes(run_of(recipe, "fusion").result())}
    assert found == {"read/greedy", "steps/on", "steps/off", "steps/auto", "steps/on_t1"}


def test_rows_tell_what_a_stage_did(recipe: Recipe) -> None:
    context = stages.build(recipe)
    rows = {row["name"]: row for row in context["rows"]}
    assert rows["align"]["trains"] == ["adapter"]
    assert rows["soup"]["parents"] == [("member_1", "sft_4"), ("member_2", "sft_4b")]
    assert ("data", "harvest") in rows["fusion"]["parents"]
    assert rows["rlvr"]["gate"]["passed"] is True
    assert "reward" in rows["rlvr"]["spark"] and "loss" in rows["sft_1"]["spark"]
    assert rows["rlvr"]["before"] is not None and rows["vision"]["before"] is None
    assert context["picture"].count("<circle") == 15 and context["picture"].count('supervised data"') == 1


def test_a_row_tells_that_the_data_ended_before_the_steps(recipe: Recipe) -> None:
    run_of(recipe, "sft_1").events.append({"event": "data_exhausted", "step": 40, "max_steps": 700})
    run_of(recipe, "sft_2").events.append({"event": "data_exhausted", "max_steps": "many"})
    rows = {row["name"]: row["data_ended"] for row in stages.build(recipe)["rows"]}
    assert rows["sft_1"] == 700 and rows["sft_2"] is rows["align"] is None
    page = render(recipe)
    assert page.count("updates, data ended</dt><dd>40 of 700</dd>") == page.count("updates, data ended") == 1


def test_the_table_and_the_figure_hold_every_evaluated_run(recipe: Recipe) -> None:
    context = accuracy.build(recipe)
    assert context is not None
    assert "harvest" not in context["runs"] and len(context["runs"]) == 14
    groups = {group["suite"]: group for group in context["groups"]}
    assert [row["mode"] for row in groups["read"]["rows"]] == ["greedy", "single digits"]
    assert [row["mode"] for row in groups["steps"]["rows"]] == ["greedy", "on", "off", "auto", "on_t1"]
    assert all(len(row["cells"]) == 14 for group in context["groups"] for row in group["rows"])
    assert context["answers"] == 512
    evaluated = sum(row["cells"] is not None for group in context["groups"] for row in group["rows"][:1])
    assert context["chart"].count('class="line') == evaluated


def changed(
    before: list[float], after: list[float], *, asked: tuple[Any, Any] = ("a", "a")
) -> tuple[float, bool] | None:
    run = Run(name="r", path=Path("r"))
    for phase, scores, question in (("before", before, asked[0]), ("after", after, asked[1])):
        mean = sum(scores) / len(scores)
        error = (sum((score - mean) ** 2 for score in scores)) ** 0.5 / len(scores)
        run.evaluation[phase] = {
            "metrics": {"s/on": mean, "s/on_se": error},
            "passes": {"s/on": {"asked": question, "scores": scores}},
        }
    return accuracy.change(run, passes(run.result())[0])


def test_a_change_is_judged_on_the_same_prompts() -> None:
    before = [0.0] * 50 + [1.0] * 50
    after = [0.0] * 44 + [1.0] * 56
    assert changed(before, after) == (pytest.approx(0.06), True), "six prompts better, none worse"
    assert changed(before, after, asked=("a", "b")) == (pytest.approx(0.06), False), "other prompts: within the noise"


def test_without_an_evaluation_before_there_is_no_change(recipe: Recipe) -> None:
    run = run_of(recipe, "vision")
    assert accuracy.change(run, passes(run.result())[0]) is None


def test_flags_are_compared_where_both_were_asked(recipe: Recipe) -> None:
    context = thinking.build(recipe)
    assert context is not None
    assert [(block["run"], block["suite"]) for block in context["blocks"]] == [
        ("fusion", "steps"),
        ("mixed_rl", "steps"),
    ]
    block = context["blocks"][0]
    assert (block["gain"], block["gain_se"]) == (0.143, 0.021)
    assert block["flags"]["on"]["thinks"] == 1.0 and block["flags"]["auto"]["followed"] is None


def test_a_soup_is_shown_with_the_line_it_had_to_reach(recipe: Recipe) -> None:
    context = soup.build(recipe)
    assert context is not None
    (block,) = context["blocks"]
    assert [row["name"] for row in block["rows"]] == ["sft_4", "sft_4b", "soup"]
    assert block["accepted"] and 'class="floor"' in block["chart"]


def test_a_recipe_without_soup_or_flags_has_no_such_section(recipe: Recipe) -> None:
    recipe.runs = recipe.runs[:4]
    assert soup.build(recipe) is None and thinking.build(recipe) is None


def test_curves_follow_what_was_logged(recipe: Recipe) -> None:
    context = curves.build(recipe)
    assert context is not None
    titles = {run["name"]: [panel["title"] for panel in run["panels"]] for run in context["runs"]}
    assert "soup" not in titles
    assert titles["sft_1"][:3] == ["Loss", "Validation loss", "Loss by source"]
    assert {"Reward", "Reward parts", "Entropy", "Tokens a response"} <= set(titles["rlvr"])
    rlvr = next(run for run in context["runs"] if run["name"] == "rlvr")
    parts = next(panel for panel in rlvr["panels"] if panel["title"] == "Reward parts")
    assert [name for name, _ in parts["legend"]] == ["answer", "format", "think"]


def test_numbers_that_are_none_leave_a_gap_not_an_error() -> None:
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": True}, {"step": 4, "loss": 1.0}]
    run = Run(name="r", path=Path("r"), metrics=lines)
    assert run.column("loss") == [(1.0, 2.0), (4.0, 1.0)]
    assert [panel["title"] for panel in curves.panels(run)] == ["Loss"]


def test_the_mixture_is_asked_against_consumed(recipe: Recipe) -> None:
    context = mixture.build(recipe)
    assert context is not None
    runs = {run["name"]: run for run in context["runs"]}
    shares = {source["name"]: (source["asked"], source["consumed"]) for source in runs["sft_1"]["sources"]}
    assert shares == {"read": (0.5, 0.5), "caption": (pytest.approx(0.3), 0.32), "chart": (pytest.approx(0.2), 0.18)}
    assert runs["sft_1"]["fill"] == pytest.approx(0.94, abs=0.01)
    assert runs["pretrain"]["quarantined"] == [("chart", "undecodable", 3)]


def test_sources_of_an_rl_run_are_counted_by_responses(recipe: Recipe) -> None:
    run = run_of(recipe, "rlvr")
    run.config["data"]["sources"] = {"rl": {"weight": 3}, "steps": {"weight": 1}, "off": {"weight": 0}}
    assert [(row["name"], row["asked"], row["consumed"]) for row in mixture.mixture(run)] == [
        ("rl", 0.75, 1.0),
        ("steps", 0.25, 0.0),
    ]


def test_pass_rates_of_a_sampling_run_are_shown(tmp_path: Path) -> None:
    rates = [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    lines = "".join(json.dumps({"phase": "sample", "pass_rate": rate}) + "\n" for rate in rates)
    (tmp_path / "samples.jsonl").write_text(lines)
    shares = dict(mixture.pass_rates(Run(name="r", path=tmp_path)))
    assert shares == {"none right": 0.25, "some": 0.25, "half and more": 0.125, "all right": 0.375}


def test_how_synthetic_data_was_made_is_told(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "synth.json").write_text(json.dumps({"seed": 0, "hasty": 0.6}))
    for run in recipe.runs:
        run.config["data_dir"] = str(tmp_path)
    context = mixture.build(recipe)
    assert context is not None and context["made"] == [(str(tmp_path), [("seed", "0"), ("hasty", "0.6")])]


def test_picking_is_bounded_and_keeps_both_verdicts() -> None:
    records = [answer(index, score=float(index % 2)) for index in range(1000)]
    picked = pick(records)
    assert picked.answers == 1000
    assert [one["index"] for one in picked.right["s", "greedy"]] == [1, 3, 5, 7]
    assert len(picked.wrong["s", "greedy"]) == KEPT
    assert len(picked.followed) == 12


def test_answers_whose_images_were_not_kept_are_no_cards() -> None:
    picked = pick([answer(0, images=1), answer(1, images=1, image_files=["a.png"])])
    assert [one["index"] for one in picked.right["s", "greedy"]] == [1]


def test_an_ungraded_answer_is_not_right() -> None:
    assert pick([answer(0, score=None)]).right == {}


def test_a_picture_is_followed_through_the_stages(recipe: Recipe) -> None:
    context = samples.build(recipe)
    assert context is not None
    for story in context["stories"]:
        runs = [one["run"] for one in story["answers"]]
        assert runs == [run.name for run in recipe.runs if run.name in runs]
        assert story["images"] and story["images"][0].startswith("data:image/png;base64,")
    dramas = [story["drama"] for story in context["stories"]]
    assert dramas == sorted(dramas, reverse=True)


def test_cards_are_right_and_wrong(recipe: Recipe) -> None:
    context = samples.build(recipe)
    assert context is not None
    assert {card["right"] for card in context["cards"]} == {True, False}
    assert {card["mode"] for card in context["cards"] if card["run"] == "fusion" and card["suite"] == "steps"} == {
        "on",
        "off",
    }
    thought = next(card for card in context["cards"] if card["mode"] == "on")
    assert thought["thought"] and "<think>" not in thought["answer"] and thought["boxed"]


def test_the_group_shown_is_one_that_differs(tmp_path: Path) -> None:
    rewards = {"alike": [1, 1, 1, 1], "one_of_four": [0, 1, 1, 1], "even": [0, 0.1, 1, 1], "last_alike": [0, 0, 0, 0]}
    records = [
        {"phase": "rollout", "rollout_batch": 1, "uid": uid, "prompt": uid, "reward": reward, "response": str(number)}
        for uid, values in rewards.items()
        for number, reward in enumerate(values)
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = Run(name="r", path=tmp_path)
    assert [group["prompt"] for group in samples.groups_of(run, samples.pick_run(run))] == ["even"]


def test_lines_that_are_the_same_are_drawn_once() -> None:
    lines = [{"step": step, "lr/vision": 0.1, "lr/adapter": 0.1, "lr/language": 0.2} for step in (1, 2)]
    (panel,) = curves.panels(Run(name="r", path=Path("r"), metrics=lines))
    assert panel["legend"] == [("adapter, vision", 0), ("language", 1)]


def test_the_page_marks_which_characters_are_wrong() -> None:
    assert samples.pieces("406824082", "406334072") == [
        ("406", True), ("82", False), ("40", True), ("8", False), ("2", True),
    ]  # fmt: skip
    assert samples.pieces("12", "123") == [("12", True)]
    assert samples.pieces("7", "7") == [("7", True)]


def test_a_group_shows_tries_best_first(recipe: Recipe) -> None:
    context = samples.build(recipe)
    assert context is not None
    assert [group["run"] for group in context["groups"]] == ["rlvr", "mixed_rl"]
    group = context["groups"][0]
    assert group["batch"] == 20 and group["count"] == 8
    assert [one["times"] for one in group["tries"]] == [5, 3], "the same answer is shown once"
    rewards = [one["reward"] for one in group["tries"]]
    assert rewards == sorted(rewards, reverse=True)
    assert group["tries"][0]["parts"] == [("answer", 1.0), ("format", 1.0)]


def test_a_failed_reward_is_shown_as_none(recipe: Recipe, tmp_path: Path) -> None:
    parts = {"answer": {"value": None, "status": "timeout", "detail": ""}}
    records = [
        {"phase": "rollout", "rollout_batch": 1, "uid": "u", "reward": reward, "parts": parts, "response": f"{reward}"}
        for reward in (None, 1.0)
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = Run(name="r", path=tmp_path)
    (group,) = samples.groups_of(run, samples.pick_run(run))
    assert [one["share"] for one in group["tries"]] == [1.0, 0.0]
    assert group["tries"][1]["parts"] == [("answer", None)]


def test_the_top_counts_what_is_done(recipe: Recipe) -> None:
    context = overview.build(recipe)
    assert (context["done"], context["total"], context["gates"]) == (15, 15, 14)
    assert context["steps"] == 11 * 40 + 2 * 20
    assert context["featured"]["right"] and context["featured"]["images"] and context["featured"]["run"] == "mixed_rl"
    assert context["last"]["run"] == "mixed_rl"


def test_notes_name_parents_and_no_absolute_place(recipe: Recipe) -> None:
    context = notes.build(recipe)
    rows = {row["name"]: row for row in context["runs"]}
    assert [(role, len(digest)) for role, _, digest in rows["soup"]["parents"]] == [("member_1", 12), ("member_2", 12)]
    assert rows["soup"]["path"] == "tiny/soup"
    assert context["missing"] == []


def test_a_broken_image_is_left_out(finished_recipe: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_recipe / "vision", tmp_path / "vision"))
    for path in (run / "eval_images").iterdir():
        path.write_bytes(b"\x89PNG" + b"broken" * 10_000)
    found = read_recipe(tmp_path).runs[0]
    assert all(card["images"] == [] for card in samples.cards_of(found, samples.pick_run(found)))
