"""`sail-train data trace` end to end: one file whatever the layout, states, a run's checkpoint, and mistakes."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path

import pytest

from sail_train import cli
from sail_train.data.synth.run import synthesize

STAGE = """
    # @package _global_
    defaults: [override /model: tiny, _self_]
    loop: supervised
    data: {num_streams: 4, batch_rows: 4, micro_batch: 2, seq_length: 128, max_patches: 128, shuffle_buffer: 16,
           pack_buffer: 8, sources: {read: {shards: '${data_dir}/train/read/*.tar'}}}
    optim: {lr: {vision: 1.0e-3, adapter: 1.0e-3, language: 1.0e-3}}
    """


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    synthesize(folder / "data", scale=0.01)
    (folder / "configs" / "stage").mkdir(parents=True)
    (folder / "configs" / "stage" / "traced.yaml").write_text(textwrap.dedent(STAGE))
    return folder


def trace(root: Path, out: str, *more: str) -> bytes:
    common = ["data", "trace", "stage=traced", f"data_dir={root / 'data'}", "--config-dir", str(root / "configs")]
    assert cli.main([*common, "--out", str(root / out), *more]) == 0
    return (root / out).read_bytes()


def test_the_file_is_the_same_whatever_the_ranks_and_where_it_goes_on(root: Path) -> None:
    whole = trace(root, "whole.jsonl", "--steps", "6", "--save-state", str(root / "six.json"))
    lines = whole.splitlines(keepends=True)
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(len(json.loads(line)["rows"]) == 4 for line in lines)
    first = json.loads(lines[0])["rows"][0][0]
    assert first.startswith("read:read-00000") and first.count(":") == 2
    assert trace(root, "four.jsonl", "--steps", "6", "--ranks", "4") == whole
    assert trace(root, "undecoded.jsonl", "--steps", "6", "--ranks", "2", "--no-decode") == whole
    assert trace(root, "late.jsonl", "--steps", "2", "--start", "4") == b"".join(lines[4:])
    longer = trace(root, "longer.jsonl", "--steps", "8")
    assert (
        trace(root, "rest.jsonl", "--steps", "2", "--state", str(root / "six.json"), "--ranks", "2")
        == (longer[len(whole) :])
    )
    assert not list(root.glob(".*.partial"))


def test_a_checkpoint_is_a_state_wherever_its_work_keeps_it(root: Path) -> None:
    trace(root, "two.jsonl", "--steps", "2", "--save-state", str(root / "two.json"))
    checkpoint = root / "step-00000002"
    checkpoint.mkdir(exist_ok=True)
    positions = json.loads((root / "two.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps({"work": {"work": positions, "load": None}}))
    expected = trace(root, "expected.jsonl", "--steps", "1", "--start", "2")
    assert trace(root, "resumed.jsonl", "--steps", "1", "--state", str(checkpoint)) == expected


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--state", "nowhere"], "--state nowhere"),
        (["--state", "{root}/data/synth.json"], "holds no positions of a supervised stage's data"),
        (["--ranks", "3"], "3 ranks cannot share num_streams=4"),
        (["--no-decode", "--workers", "1"], "workers decode what they read"),
        (["data.sources.read.epochs=0.5", "--state", "{root}/six.json"], "cannot be continued"),
    ],
)
def test_mistakes_are_told_in_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    trace(root, "whole.jsonl", "--steps", "6", "--save-state", str(root / "six.json"))
    common = ["data", "trace", "stage=traced", f"data_dir={root / 'data'}", "--config-dir", str(root / "configs")]
    arguments = [*common, "--steps", "1", "--out", str(root / "none.jsonl"), *(one.format(root=root) for one in more)]
    assert cli.main(arguments) == 2
    assert told in capsys.readouterr().err and not (root / "none.jsonl").exists()


def test_a_run_without_a_checkpoint_is_no_state(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
    common = ["data", "trace", "stage=traced", f"data_dir={root / 'data'}", "--config-dir", str(root / "configs")]
    assert cli.main([*common, "--steps", "1", "--out", str(root / "x.jsonl"), "--state", str(root / "run")]) == 2
    assert "no checkpoint that verifies" in capsys.readouterr().err


def test_a_trace_that_reaches_the_end_of_the_data_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = trace(root, "end.jsonl", "--steps", "9999", "--no-decode", "data.sources.read.epochs=1")
    assert 0 < len(found.splitlines()) < 9999
    assert f"the data is exhausted after {len(found.splitlines())} of 9999 steps" in capsys.readouterr().err


def test_a_stage_whose_parent_is_not_there_is_traced_with_the_models_own_tokenizer(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = trace(root, "own.jsonl", "--steps", "1")
    assert trace(root, "orphan.jsonl", "--steps", "1", "parents.model=runs/gone") == expected
    assert "the trace is that of the tokenizer in" in capsys.readouterr().err
    tokenizer = root / "data" / "tokenizer"
    shutil.move(tokenizer, root / "aside")
    try:
        common = ["data", "trace", "stage=traced", f"data_dir={root / 'data'}", "--config-dir", str(root / "configs")]
        assert cli.main([*common, "--steps", "1", "--out", str(root / "x.jsonl"), "parents.model=runs/gone"]) == 2
    finally:
        shutil.move(root / "aside", tokenizer)
    assert "runs/gone" in capsys.readouterr().err


def test_steps_must_be_some(root: Path) -> None:
    with pytest.raises(SystemExit):
        cli.main(["data", "trace", "stage=traced", "--steps", "0", "--out", "x"])
