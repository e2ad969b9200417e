from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sail_train.loops import evaluation
from sail_train.loops.evaluation import evaluate_model, evaluate_run, load, read_evaluation, read_suites, taken_over
from sail_train.loops.shown import chosen, keep_images

Make = Callable[..., Any]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_directory_says_what_was_asked_and_answered(make_run: Make, make_config: Make) -> None:
    run, config = make_run("one"), make_config("one", loop="supervised")
    metrics = evaluate_run(*load(run), config, phase="after")
    written = json.loads((run / "evaluation.json").read_text())["after"]
    assert written["metrics"] == metrics
    assert set(written["passes"]) == {"read/greedy", "read/t1"}
    assert len(written["passes"]["read/t1"]["scores"]) == 6
    samples = lines(run / "samples.jsonl")
    assert [(one["mode"], one["index"]) for one in samples] == [(m, i) for m in ("greedy", "t1") for i in range(6)]
    assert lines(run / "events.jsonl")[-1]["event"] == "evaluation"


def test_images_of_shown_answers_are_kept(make_run: Make, make_config: Make) -> None:
    run, config = make_run("one"), make_config("one", loop="supervised")
    evaluate_run(*load(run), config, phase="after")
    shown = [one for one in lines(run / "samples.jsonl") if "image_files" in one]
    assert shown and shown[0]["index"] == 0
    suites = read_suites(config.eval)
    for record in shown:
        assert (run / record["image_files"][0]).read_bytes() == suites["read"][record["index"]].images[0]


def test_what_the_parent_was_asked_is_taken_over(
    make_run: Make, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = make_run("parent")
    after = evaluate_run(*load(parent), make_config("parent", loop="supervised"), phase="after")
    child = make_config("child", loop="supervised", parents={"model": parent})
    asked = []
    whole = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *a, **k: asked.append(a[3].modes) or whole(*a, **k))
    assert evaluate_run(*load(parent), child, phase="before") == after
    assert asked == [{}]
    assert not (Path(child.run_dir) / "samples.jsonl").exists(), "answers before are in the parent's run"
    assert read_evaluation(Path(child.run_dir))["before"]["metrics"] == after


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, {"read/greedy", "read/t1"}),
        ({"eval": {"batch_size": 2}}, {"read/greedy", "read/t1"}),
        ({"eval": {"samples": 2}}, {"read/greedy"}),
        ({"eval": {"max_new_tokens": 5}}, set()),
        ({"eval": {"limit": 3}}, set()),
        ({"rewards": {"verifier": {"box_iou": 0.7}}}, set()),
    ],
)
def test_only_what_was_asked_alike_is_taken_over(
    make_run: Make, make_config: Make, change: dict[str, Any], taken: set[str]
) -> None:
    parent = make_run("parent")
    evaluate_run(*load(parent), make_config("parent", loop="supervised"), phase="after")
    child = make_config("child", loop="supervised", parents={"model": parent}, **change)
    assert set(taken_over(child, parent, read_suites(child.eval)).passes) == taken


def test_another_seed_draws_anew_but_greedy_holds(make_run: Make, make_config: Make) -> None:
    parent = make_run("parent")
    evaluate_run(*load(parent), make_config("parent", loop="supervised"), phase="after")
    child = make_config("child", loop="supervised", parents={"model": parent})
    child.seed = 3
    assert set(taken_over(child, parent, read_suites(child.eval)).passes) == {"read/greedy"}


def test_nothing_is_asked_without_modes(make_run: Make, make_config: Make) -> None:
    config = make_config("one", loop="supervised", eval={"modes": {}})
    assert evaluate_run(*load(make_run("one")), config, phase="after") == {}
    assert not (Path(config.run_dir) / "evaluation.json").exists()


def test_a_model_folder_is_evaluated_without_a_run(make_run: Make, make_config: Make) -> None:
    run, config = make_run("one"), make_config("one", loop="supervised")
    inside = evaluate_run(*load(run), config, phase="after")
    for folder in (run, run / "model"):
        assert evaluate_model(folder, config.eval).metrics == inside


@pytest.mark.parametrize(
    ("device", "precision", "dtype"),
    [("cuda", "bf16", "bfloat16"), ("cuda", "fp32", "float32"), ("cpu", "bf16", "float32")],
)
def test_a_gpu_evaluates_in_the_precision_of_the_engine(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, device: str, precision: str, dtype: str
) -> None:
    run, chosen_dtypes = make_run("one"), []

    def loaded(folder: Path, *, dtype: str) -> Any:
        chosen_dtypes.append(dtype)
        return SimpleNamespace(to=lambda device: device)

    monkeypatch.setattr("sail_train.model.build.load_model", loaded)
    monkeypatch.setattr("sail_train.dist.device", lambda: torch.device(device))
    assert load(run, precision=precision)[0] == torch.device(device)
    assert chosen_dtypes == [dtype]


def test_a_folder_without_a_model_is_refused(tmp_path: Path, make_config: Make) -> None:
    with pytest.raises(ValueError, match="config.json"):
        evaluate_model(tmp_path, make_config("x").eval)


def test_first_prompts_and_both_verdicts_are_chosen() -> None:
    samples = [
        {"suite": "s", "mode": "on", "index": index, "score": float(index in (4, 6)) if index != 5 else None}
        for index in range(8)
    ]
    assert chosen(samples, show=1) == [("s", 0), ("s", 4)]
    assert chosen(samples, show=2) == [("s", 0), ("s", 1), ("s", 4), ("s", 6)]
    assert chosen(samples, show=0) == []


def test_images_of_an_earlier_evaluation_are_replaced(tmp_path: Path, make_config: Make) -> None:
    suites = read_suites(make_config("x").eval)
    samples = [{"suite": "read", "mode": "on", "index": 3, "score": 1.0}]
    (tmp_path / "eval_images").mkdir()
    (tmp_path / "eval_images" / "old.png").write_bytes(b"old")
    assert keep_images(tmp_path, samples, suites, show=1) == {("read", 3): ["eval_images/read-000003.0.png"]}
    assert [path.name for path in (tmp_path / "eval_images").iterdir()] == ["read-000003.0.png"]
