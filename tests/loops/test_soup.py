from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sail_train.loops import soup
from sail_train.loops.config import RunConfig
from sail_train.loops.evaluation import evaluate_run, load
from sail_train.loops.soup import Member, check_metrics, judge, member_paths, shares
from sail_train.loops.soup_config import SoupConfig
from sail_train.loops.soup_siblings import check_siblings
from sail_train.loops.soup_weights import average, copy_model
from sail_train.processor.processor import SailVLProcessor
from sail_train.processor.tokenizer import train_tokenizer

Make = Callable[..., Any]


@pytest.fixture
def members(make_run: Callable[..., Path]) -> dict[str, Path]:
    return {"member_1": make_run("one", seed=1), "member_2": make_run("two", seed=2)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(folder: Path, other: Path) -> bool:
    left, right = weights(folder), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_soup_is_the_mean_of_its_members(make_config: Make, members: dict[str, Path]) -> None:
    config = make_config("soup", parents=members)
    outcome = soup.run(config)
    mixed = weights(Path(config.run_dir) / "model")
    one, two = (weights(path / "model") for path in members.values())
    assert mixed.keys() == one.keys()
    for name, tensor in mixed.items():
        torch.testing.assert_close(
            tensor, (one[name].double() + two[name].double()).div(2).float(), rtol=1e-6, atol=1e-8
        )
    assert outcome.status == "finished" and outcome.model_dir == Path(config.run_dir) / "model"
    assert {"read/greedy", "read/t1"} <= set(outcome.metrics_after)
    assert {"read/greedy", "read/t1"} <= set(outcome.metrics_before)


def test_the_soup_loads_and_answers(make_config: Make, members: dict[str, Path]) -> None:
    config = make_config("soup", parents=members)
    soup.run(config)
    model, processor = load(config.run_dir)
    assert isinstance(processor, SailVLProcessor)
    assert model.config.image_token_id == processor.image_token_id


def test_everything_is_written_down(make_config: Make, members: dict[str, Path]) -> None:
    config = make_config("soup", parents=members)
    soup.run(config)
    run = Path(config.run_dir)
    verdict = json.loads((run / "soup.json").read_text())
    assert [member["name"] for member in verdict["members"].values()] == ["one", "two"]
    assert verdict["weights"] == [0.5, 0.5]
    assert verdict["accepted"] == (verdict["soup"]["value"] >= verdict["floor"])
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 12
    assert {"member_1", "member_2", "after"} == set(json.loads((run / "evaluation.json").read_text()))
    kinds = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert kinds[0] == "start" and "soup" in kinds


def test_a_second_start_gives_the_same_files(make_config: Make, members: dict[str, Path]) -> None:
    config = make_config("soup", parents=members)
    run = Path(config.run_dir)

    def content() -> dict[str, bytes]:
        return {name: (run / name).read_bytes() for name in ("samples.jsonl", "evaluation.json", "soup.json")}

    soup.run(config)
    first = content()
    soup.run(config)
    assert content() == first


def test_what_a_member_was_asked_before_is_not_asked_again(
    make_config: Make, members: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, path in members.items():
        model, processor = load(path)
        evaluate_run(model, processor, make_config(path.name, loop="supervised"), phase="after")
        assert (path / "evaluation.json").is_file(), name
    loaded = []
    monkeypatch.setattr(soup, "load", lambda folder, **how: loaded.append(folder) or load(folder, **how))
    config = make_config("soup", parents=members)
    soup.run(config)
    assert loaded == [Path(config.run_dir) / "model"]


def test_a_rejected_soup_leaves_the_best_member(
    make_config: Make, members: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("soup", parents=members)
    reached = {members["member_1"] / "model": 0.2, members["member_2"] / "model": 0.8}

    def pretended(config: RunConfig, folder: Path, suites: Any, *, phase: str = "after") -> dict[str, float]:
        value = next((value for member, value in reached.items() if same(folder, member)), 0.1)
        return {"read/greedy": value, "read/greedy_se": 0.01}

    monkeypatch.setattr(soup, "evaluate_here", pretended)
    outcome = soup.run(config)
    verdict = json.loads((Path(config.run_dir) / "soup.json").read_text())
    assert (verdict["accepted"], verdict["kept"]) == (False, "two")
    assert outcome.metrics_after["read/greedy"] == 0.8
    assert same(Path(config.run_dir) / "model", members["member_2"] / "model")


def member(role: str, value: float, error: float = 0.02) -> Member:
    return Member(role=role, run=Path("runs") / role, metrics={"read/greedy": value, "read/greedy_se": error})


@pytest.mark.parametrize(("value", "accepted"), [(0.55, True), (0.481, True), (0.479, False), (0.7, True)])
def test_a_soup_may_fall_one_standard_error_below_the_mean(make_config: Make, value: float, accepted: bool) -> None:
    config = make_config("soup", parents={"member_1": Path("a"), "member_2": Path("b")})
    best, verdict = judge(config, [member("member_1", 0.4), member("member_2", 0.6)], member("soup", value))
    assert verdict["accepted"] is accepted
    assert verdict["floor"] == pytest.approx(0.48)
    assert (best is None) is accepted and (best is None or best.role == "member_2")


def test_several_metrics_count_alike() -> None:
    one = Member(role="m", run=Path("m"), metrics={"a": 0.4, "a_se": 0.03, "b": 0.8, "b_se": 0.04})
    assert one.score(["a", "b"]) == (pytest.approx(0.6), pytest.approx(0.025))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "align"}, r"stage \('sft' and 'align'\)"),
        ({"parent": "b" * 64}, "parent checkpoint"),
        ({"language": {"num_hidden_layers": 2}}, "architecture.*config.json differ.*tensor names"),
        ({"language": {"intermediate_size": 40}}, "F32 32x48 and F32 32x40|F32 48x32 and F32 40x32"),
        ({"folder": SailVLProcessor(train_tokenizer(["something else entirely"] * 3, 300))}, "tokenizer"),
        ({"folder": "system"}, "chat_template.jinja|processor_config.json"),
    ],
)
def test_strangers_are_refused_with_what_differs(
    make_run: Callable[..., Path], processor: SailVLProcessor, change: dict[str, Any], message: str
) -> None:
    if change.get("folder") == "system":
        change = {"folder": SailVLProcessor(processor.tokenizer, system="You are someone else.")}
    members = {"member_1": make_run("one"), "member_2": make_run("two", seed=2, **change)}
    with pytest.raises(ValueError, match=message) as error:
        check_siblings(members)
    assert "no siblings" in str(error.value)


def test_near_settings_are_siblings(members: dict[str, Path]) -> None:
    check_siblings(members)


def test_a_bare_model_folder_is_no_sibling(members: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="has no lineage.json"):
        check_siblings({"member_1": members["member_1"], "member_2": members["member_2"] / "model"})


def test_shares_weigh_the_members(members: dict[str, Path], tmp_path: Path) -> None:
    folders = [path / "model" for path in members.values()]
    average(folders, [0.25, 0.75], tmp_path / "out")
    one, two, mixed = (weights(folder) for folder in (*folders, tmp_path / "out"))
    for name in mixed:
        torch.testing.assert_close(mixed[name], 0.25 * one[name] + 0.75 * two[name])


def test_sums_are_kept_in_fp32_for_half_precision(tmp_path: Path) -> None:
    folders = []
    for number, value in enumerate((256.0, 1.0, 1.0)):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file({"w": torch.tensor([value], dtype=torch.bfloat16)}, folder / "model.safetensors")
        folders.append(folder)
    average(folders, [1 / 3] * 3, tmp_path / "out")
    mixed = weights(tmp_path / "out")["w"]
    assert mixed.dtype == torch.bfloat16 and mixed.item() == torch.tensor(86.0, dtype=torch.bfloat16).item()


def test_sharded_folders_are_averaged_file_by_file(tmp_path: Path) -> None:
    """The second member holds the same tensors in one file; the first's layout is kept."""
    tensors = [{"a": torch.randn(3), "b": torch.randn(2)} for _ in range(2)]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    for name in "ab":
        save_file({name: tensors[0][name]}, first / f"model-{name}.safetensors")
    index = {"metadata": {}, "weight_map": {name: f"model-{name}.safetensors" for name in "ab"}}
    (first / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(tensors[1], second / "model.safetensors")
    average([first, second], [0.5, 0.5], tmp_path / "out")
    assert json.loads((tmp_path / "out/model.safetensors.index.json").read_text()) == index
    for name in "ab":
        with safe_open(tmp_path / f"out/model-{name}.safetensors", framework="pt") as file:
            torch.testing.assert_close(file.get_tensor(name), (tensors[0][name] + tensors[1][name]) / 2)


def test_whole_numbers_are_not_averaged(tmp_path: Path) -> None:
    for name, value in (("one", 4), ("two", 4), ("three", 5)):
        (tmp_path / name).mkdir()
        save_file({"steps": torch.tensor([value])}, tmp_path / name / "model.safetensors")
    average([tmp_path / "one", tmp_path / "two"], [0.5, 0.5], tmp_path / "out")
    assert weights(tmp_path / "out")["steps"].tolist() == [4]
    with pytest.raises(ValueError, match="steps holds whole numbers that differ"):
        average([tmp_path / "one", tmp_path / "three"], [0.5, 0.5], tmp_path / "out")
    assert weights(tmp_path / "out")["steps"].tolist() == [4], "a failed average must not touch what was there"


def test_a_copy_replaces_the_whole_folder(members: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("x")
    (tmp_path / "out.partial").mkdir()
    copy_model(members["member_1"] / "model", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in (members["member_1"] / "model").iterdir()
    )
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("parents", "sections", "message"),
    [
        ({}, {}, "needs at least two members"),
        ({"member_1": "a"}, {}, "needs at least two members"),
        ({"member_1": "a", "model": "b"}, {}, "parents.model: a soup takes member_1"),
        ({"member_1": "a", "member_x": "b"}, {}, "parents.member_x"),
        ({"member_1": "a", "member_2": "b"}, {"soup": {"metrics": []}}, "soup.metrics is empty.*read/greedy"),
        ({"member_1": "a", "member_2": "b"}, {"soup": {"metrics": ["read/gredy"]}}, "did you mean 'read/greedy'"),
        ({"member_1": "a", "member_2": "b"}, {"soup": {"weights": [0.2, 0.3, 0.5]}}, "3 values for 2 members"),
    ],
)
def test_wrong_soups_are_refused(
    make_config: Make, parents: dict[str, str], sections: dict[str, Any], message: str
) -> None:
    config = make_config("soup", parents={role: Path(path) for role, path in parents.items()}, **sections)
    with pytest.raises(ValueError, match=message):
        paths = member_paths(config)
        check_metrics(config)
        shares(config, len(paths))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tolerance_se": -1.0}, "soup.tolerance_se=-1.0"),
        ({"weights": [0.5, 0.6]}, "positive and sum to 1"),
        ({"weights": [1.5, -0.5]}, "positive and sum to 1"),
        ({"weights": []}, "positive and sum to 1"),
    ],
)
def test_wrong_soup_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoupConfig(**values)


def test_members_are_taken_in_the_order_of_their_numbers(make_config: Make) -> None:
    config = make_config("soup", parents={f"member_{n}": Path(f"r{n}") for n in (10, 2, 1)})
    assert [path.name for path in member_paths(config).values()] == ["r1", "r2", "r10"]


def test_a_missing_member_is_named(make_config: Make, members: dict[str, Path]) -> None:
    shutil.rmtree(members["member_2"] / "model")
    with pytest.raises(ValueError, match="two"):
        soup.run(make_config("soup", parents=members))
