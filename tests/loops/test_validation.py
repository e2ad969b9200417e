"""Validation: the loss on held-out rows by its definition, without a trace in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loops_tiny import MIXED, SUPERVISED, events, lines, losses, make_job, start, weights

from sail_train import dist
from sail_train.data.stream import Stream
from sail_train.engine.deepspeed import TrainEngine
from sail_train.loops import setup
from sail_train.loops.config import RunConfig
from sail_train.loops.supervised import token_loss
from sail_train.loops.validation import STEPS, Validation
from sail_train.model.packed import PackedLM
from sail_train.processor.processor import SailVLProcessor

HELD_OUT = ("valid.read.shards=${data_dir}/eval/read/*.tar", "valid.text.shards=${data_dir}/eval/text_plain/*.tar")
BOTH = (*SUPERVISED, *MIXED, *HELD_OUT, "train.valid_every=2")


@pytest.fixture(scope="module")
def built(data: Path) -> tuple[RunConfig, SailVLProcessor, Any, TrainEngine]:
    dist.init()
    config = make_job(data, *BOTH, "train.max_steps=4").config
    processor = setup.make_processor(config)
    vlm = setup.make_model(config, processor)
    return config, processor, vlm, setup.make_engine(config, vlm, accumulation=2)


def test_it_is_the_mean_over_trained_tokens_of_the_first_held_out_rows(
    built: tuple[RunConfig, SailVLProcessor, Any, TrainEngine],
) -> None:
    config, processor, vlm, engine = built
    validation = Validation.of(config, processor)
    assert validation is not None
    measured = validation.measure(engine)
    with Stream(replace(config.data, sources=config.valid), processor, seed=config.seed) as stream:
        batches = [batch for _ in range(STEPS) for batch in next(stream).batches]
    sums: dict[str, float] = {}
    for batch in batches:
        with torch.no_grad():
            summed, by_source = token_loss(PackedLM(vlm), batch)
        for name, value in {"loss": summed, "loss:count": (batch.labels != -100).sum(), **by_source}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    assert set(measured) == {"loss", "loss/read", "loss/text"}
    for name, value in measured.items():
        assert value == pytest.approx(sums[name] / sums[f"{name}:count"], rel=1e-5)


def test_measuring_twice_gives_the_same_and_leaves_no_gradient(
    built: tuple[RunConfig, SailVLProcessor, Any, TrainEngine],
) -> None:
    config, processor, _, engine = built
    validation = Validation.of(config, processor)
    assert validation is not None
    assert validation.measure(engine) == validation.measure(engine)
    assert engine.module.training
    assert all(parameter.grad is None for parameter in engine.module.parameters())


def test_it_comes_when_it_is_due_and_changes_no_training_step(data: Path, tmp_path: Path) -> None:
    seen, unseen = tmp_path / "seen", tmp_path / "unseen"
    assert start(data, *BOTH, "train.max_steps=5", f"run_dir={seen}") == 0
    assert start(data, *SUPERVISED, *MIXED, "train.max_steps=5", f"run_dir={unseen}") == 0
    validations = [line for line in lines(seen) if "valid/loss" in line]
    assert [line["step"] for line in validations] == [2, 4]
    assert losses(seen) == losses(unseen)
    expected = weights(unseen)
    assert all(torch.equal(expected[name], weight) for name, weight in weights(seen).items())
    assert events(seen, "best")[-1]["loss"] == min(losses(seen, "valid/loss"))


def test_steps_of_validation_without_a_source_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = (*SUPERVISED, *MIXED, "train.max_steps=1", "train.valid_every=2", f"run_dir={tmp_path}/run")
    assert start(data, *tokens) == 2
    assert "error: train.valid_every=2 but `valid` names no source; set valid.NAME.shards" in capsys.readouterr().err


def test_held_out_sources_that_nothing_measures_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = (*SUPERVISED, *MIXED, *HELD_OUT, "train.max_steps=1", f"run_dir={tmp_path}/run")
    assert start(data, *tokens) == 2
    told = capsys.readouterr().err
    assert "error: valid names read, text, and train.valid_every=0 measures nothing; set train.valid_every=N" in told
