"""`sail-train eval`: what is asked, of which suites, and where the figures go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sail_train.commands import evaluate
from sail_train.eval.config import EvalConfig
from sail_train.job.overrides import parse_tokens


def config(*arguments: str) -> EvalConfig:
    options = evaluate._parse(list(arguments))
    return evaluate.make_config(options, parse_tokens(options.tokens))


def test_a_run_is_asked_what_its_stage_was(trained: Path) -> None:
    found = config(str(trained))
    assert found.modes == {"colour": ["greedy", "t1"]} and found.max_new_tokens == 4
    assert config(str(trained / "model")).modes == found.modes, "its model folder means the same run"


def test_suites_modes_and_values_can_be_chosen(trained: Path) -> None:
    found = config(str(trained), "--suites", "colour,other", "eval.limit=2", "--modes", "on,off")
    assert found.modes == {"colour": ["on", "off"], "other": ["on", "off"]} and found.limit == 2


def test_the_precision_is_that_of_the_engine_that_trained_the_model(tmp_path: Path) -> None:
    for written, precision in (("engine: {precision: bf16}\n", "bf16"), ("engine: {}\n", "fp32"), ("", "fp32")):
        (tmp_path / "config.yaml").write_text(written)
        assert evaluate._precision(tmp_path) == evaluate._precision(tmp_path / "model") == precision
    assert evaluate._precision(tmp_path / "elsewhere" / "model") == "fp32"


def test_a_bare_folder_is_asked_what_a_data_group_holds(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "own" / "data").mkdir(parents=True)
    (tmp_path / "own" / "data" / "mine.yaml").write_text(
        "# @package _global_\ndata_dir: d\neval: {suites: {a: {shards: '${data_dir}/x.tar'}}}\n"
    )
    found = config(str(tmp_path), "data=mine", "data_dir=elsewhere", "--config-dir", str(tmp_path / "own"))
    assert found.suites["a"].shards == "elsewhere/x.tar" and list(found.modes) == ["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suites", "coluor"], "--suites='coluor' is none of colour, other; did you mean 'colour'"),
        (["--modes", "gredy"], "--modes='gredy' is none of .*did you mean 'greedy'"),
        (["train.max_steps=2"], "only data_dir and eval.* can be set here"),
        (["eval.lmit=2"], "eval.lmit: unknown key; did you mean 'limit'"),
        (["~eval.suites"], "~eval.suites: nothing can be taken away here"),
        (["eval.suites={}"], "names no eval.suites"),
    ],
)
def test_what_cannot_be_asked_is_named(trained: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(str(trained), *arguments)


def test_figures_end_in_a_table_and_in_files(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out, samples = tmp_path / "eval.json", tmp_path / "samples.jsonl"
    assert evaluate.run([str(trained), "--out", str(out), "--samples", str(samples)]) == 0
    told = capsys.readouterr().out
    assert "colour/greedy" in told and "colour/t1" in told
    metrics = json.loads(out.read_text())["metrics"]
    assert metrics["colour/greedy_n"] == 4 and 0 <= metrics["colour/greedy"] <= 1
    records = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(records) == 8 and {record["suite"] for record in records} == {"colour"}
