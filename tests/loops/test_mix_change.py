"""A run that goes on with another mixture, through the command: refused, or told and recorded, as it was asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from loops_tiny import MIXED, SUPERVISED, events, lines, losses, start


def cut_back(run: Path, step: int) -> None:
    """The run as if it had been killed after a step."""
    (run / "outcome.json").unlink()
    for later in (run / "checkpoints").glob("step-*"):
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)


def test_a_mixture_changes_on_resume_when_asked_and_leaves_an_event(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    tokens = (*SUPERVISED, *MIXED, "train.max_steps=4", "train.save_every=1", "train.keep=9", f"run_dir={run}")
    assert start(data, *tokens) == 0
    whole = losses(run)
    cut_back(run, 2)
    changed = (*tokens, "data.sources.text.weight=3.0", "data.sources.frames.stop_step=3")
    assert start(data, *changed) == 2
    told = capsys.readouterr().err
    assert "data.sources.text.weight: 0.3 -> 3.0" in told and "data.sources.frames.stop_step: null -> 3" in told
    assert "Say data.allow_mix_change=true to go on with this one from where it stands" in told
    assert "a source that is to end gets a stop_step" in told and "force=true to train it anew" in told
    assert start(data, *changed, "data.allow_mix_change=true") == 0
    (event,) = events(run, "mix_change")
    assert [change.split(" was ")[0] for change in event["changes"]] == ["mix.batch_rows", "mix.frames", "mix.text"]
    assert "weight=0.3" in event["changes"][2] and "weight=3," in event["changes"][2]
    found = losses(run)
    assert found[:2] == whole[:2] and len(found) == 4 and len(lines(run)) >= 4
    assert start(data, *changed, "data.seq_length=300", "data.allow_mix_change=true") == 2


def test_a_further_source_is_let_in_when_asked_and_what_it_does_not_cover_is_not_offered(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    tokens = (*SUPERVISED, *MIXED, "train.max_steps=12", "train.save_every=2", "train.keep=9", f"run_dir={run}")
    assert start(data, *tokens) == 0
    more = ("data.sources.boxed.shards=${data_dir}/boxed/*.tar", "data.sources.boxed.weight=9")
    assert start(data, *tokens, *more) == 2
    told = capsys.readouterr().err
    assert "was finished with something else" in told and "allow_mix_change" not in told, "there is nothing to go on"
    cut_back(run, 2)
    assert start(data, *tokens, *more, "seed=7") == 2
    assert "allow_mix_change" not in capsys.readouterr().err
    assert start(data, *tokens, *more) == 2
    assert "Say data.allow_mix_change=true" in capsys.readouterr().err
    assert start(data, *tokens, *more, "data.allow_mix_change=true") == 0
    (event,) = events(run, "mix_change")
    assert [change.split(" was ")[0] for change in event["changes"]] == ["mix.boxed", "sources.boxed"]
    assert lines(run)[-1]["mix/samples/boxed"] > 0
