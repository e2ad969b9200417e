"""The supervised loop against plain formulas: one sample at a time through the model that generates, in float64."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from loops_tiny import MIXED, SUPERVISED, events, lines, losses, make_job, start, weights

from sail_train.data.stream import Stream
from sail_train.loops import setup
from sail_train.loops.config import RunConfig
from sail_train.loops.supervised import LOSSES, consumed, num_samples, num_trained, sample_loss, token_loss
from sail_train.model.packed import PackedLM
from sail_train.types import IGNORE_INDEX, Batch, Step

TOLERANCE = 1e-5
"""Relative, of fp32 against float64: rounding of a few layers and of sums of a few hundred terms."""


def config_of(data: Path, *tokens: str) -> RunConfig:
    return make_job(data, *SUPERVISED, *MIXED, "train.max_steps=1", *tokens).config


def steps_of(config: RunConfig, count: int) -> list[Step]:
    with Stream(config.data, setup.make_processor(config), seed=config.seed) as stream:
        return [next(stream) for _ in range(count)]


@dataclass(frozen=True)
class Plain:
    """One sample's trained tokens, by the definition."""

    source: str
    losses: list[float]


def plain(vlm: Any, batch: Batch) -> list[Plain]:
    """Each sample of a batch alone through the model's ordinary forward, its images picked out by counting."""
    merge, vlm = vlm.config.merge_size**2, copy.deepcopy(vlm).double().eval()
    found, patch, image = [], 0, 0
    for number, (begin, end) in enumerate(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)):
        ids, labels = batch.input_ids[begin:end], batch.labels[begin:end]
        left, first, grids = int((ids == vlm.config.image_token_id).sum()) * merge, patch, []
        while left:
            grids.append(batch.grids[image])
            left, patch, image = left - int(grids[-1].prod()), patch + int(grids[-1].prod()), image + 1
        pictures = {"patches": batch.patches[first:patch], "grids": torch.stack(grids)} if grids else {}
        with torch.no_grad():
            logprobs = vlm(input_ids=ids[None], use_cache=False, **pictures).logits[0].log_softmax(-1)  # (T, V)
        trained = (labels != IGNORE_INDEX).nonzero()[:, 0].tolist()
        found.append(Plain(batch.sources[number], [-float(logprobs[place, labels[place]]) for place in trained]))
    assert image == len(batch.grids)
    return found


@pytest.fixture(scope="module")
def measured(data: Path) -> tuple[Any, Step, list[Plain]]:
    """A fresh model, its first step, and that step's samples by the definition."""
    config = config_of(data)
    vlm = setup.make_model(config, setup.make_processor(config))
    (step,) = steps_of(config, 1)
    return vlm, step, [sample for batch in step.batches for sample in plain(vlm, batch)]


def test_token_loss_is_the_sum_over_trained_tokens(measured: tuple[Any, Step, list[Plain]]) -> None:
    vlm, step, samples = measured
    total = sum(float(token_loss(PackedLM(vlm), batch)[0].detach()) for batch in step.batches)
    assert total == pytest.approx(sum(sum(sample.losses) for sample in samples), rel=TOLERANCE)
    assert sum(num_trained(batch) for batch in step.batches) == sum(len(sample.losses) for sample in samples)


def test_sample_loss_is_the_sum_over_samples_of_their_means(measured: tuple[Any, Step, list[Plain]]) -> None:
    vlm, step, samples = measured
    total = sum(float(sample_loss(PackedLM(vlm), batch)[0].detach()) for batch in step.batches)
    means = [sum(sample.losses) / len(sample.losses) for sample in samples]
    assert total == pytest.approx(sum(means), rel=TOLERANCE)
    assert sum(num_samples(batch) for batch in step.batches) == len(means) > 4


@pytest.mark.parametrize("name", LOSSES)
def test_either_loss_reports_token_losses_by_source(measured: tuple[Any, Step, list[Plain]], name: str) -> None:
    vlm, step, samples = measured
    expected: Counter[str] = Counter()
    for sample in samples:
        expected[f"loss/{sample.source}"] += sum(sample.losses)  # type: ignore[assignment]
        expected[f"loss/{sample.source}:count"] += len(sample.losses)
    found: Counter[str] = Counter()
    for batch in step.batches:
        found.update({key: float(value) for key, value in LOSSES[name][0](PackedLM(vlm), batch)[1].items()})  # type: ignore[misc]
    assert dict(found) == pytest.approx(dict(expected), rel=TOLERANCE)
    assert len(found) == 6, "three sources"


def test_a_sample_without_a_target_weighs_nothing(measured: tuple[Any, Step, list[Plain]]) -> None:
    """As one whose pixels failed and that a placeholder stands for."""
    vlm, step, _ = measured
    batch = step.batches[0]
    start_of_last = int(batch.cu_seqlens[-2])
    labels = batch.labels.clone()
    labels[start_of_last:] = IGNORE_INDEX
    less = Batch(**{**vars(batch), "labels": labels})
    assert num_samples(less) == num_samples(batch) - 1
    whole, rest = (sample_loss(PackedLM(vlm), one)[0] for one in (batch, less))
    (last,) = plain(vlm, batch)[-1:]
    assert float((whole - rest).detach()) == pytest.approx(sum(last.losses) / len(last.losses), rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_line_of_a_run_is_the_formula(
    measured: tuple[Any, Step, list[Plain]], data: Path, tmp_path: Path, loss: str
) -> None:
    """Through the command: the mean over the whole step, micro batches together."""
    run = tmp_path / loss
    assert start(data, *SUPERVISED, *MIXED, "train.max_steps=1", f"train.loss={loss}", f"run_dir={run}") == 0
    (line,), samples = lines(run), measured[2]
    means = [sum(sample.losses) / len(sample.losses) for sample in samples]
    tokens = [value for sample in samples for value in sample.losses]
    expected = sum(tokens) / len(tokens) if loss == "token" else sum(means) / len(means)
    assert line["loss"] == pytest.approx(expected, rel=TOLERANCE)
    assert (line["trained_tokens"], line["samples"]) == (len(tokens), len(samples))


def test_a_run_records_the_mixture_as_it_came(data: Path, tmp_path: Path) -> None:
    config = config_of(data)
    assert start(data, *SUPERVISED, *MIXED, "train.max_steps=6", f"run_dir={tmp_path / 'run'}") == 0
    steps = steps_of(config, 6)
    for line, step in zip(lines(tmp_path / "run"), steps, strict=True):
        expected = consumed(step.batches, list(config.data.sources))
        assert {name: value for name, value in line.items() if name in expected} == expected
        assert line["fill"] == pytest.approx(step.fill)
        assert sum(value for name, value in expected.items() if name.startswith("tokens/")) == line["tokens"]
        assert sum(value for name, value in expected.items() if name.startswith("samples/")) == line["samples"]
    counted = Counter(source for step in steps for batch in step.batches for source in batch.sources)
    assert counted == {name: sum(losses(tmp_path / "run", f"samples/{name}")) for name in config.data.sources}
    assert [len(losses(tmp_path / "run", f"samples/{name}")) for name in config.data.sources] == [6, 6, 6]


def test_frozen_parts_keep_every_bit_and_a_missing_part_is_fresh(data: Path, trained: Path, tmp_path: Path) -> None:
    """Alignment: tower and language model of an earlier run, an adapter of its own, and only that one learns."""
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    parts = (f"parents.vision={trained}", f"parents.language={trained}", "~optim.lr", "optim.lr.adapter=3.0e-3")
    zero = (*parts, "optim.lr.language=0.0")
    assert start(data, *SUPERVISED, *MIXED, *parts, "train.max_steps=5", f"run_dir={run}") == 0
    assert start(data, *SUPERVISED, *MIXED, *zero, "train.max_steps=5", f"run_dir={fresh}") == 0
    before, after, again = weights(trained), weights(run), weights(fresh)
    for name, weight in before.items():
        assert torch.equal(after[name], weight) == (not name.startswith("adapter.")), name
    assert losses(run)[-1] < losses(run)[0]
    assert all(torch.equal(again[name], weight) for name, weight in after.items()), "a rate of 0 is none"


def test_a_seed_fixes_a_run_and_another_changes_it(data: Path, tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("one", "same", "other")}
    for name, run in runs.items():
        seed = 7 if name == "other" else 0
        assert start(data, *SUPERVISED, *MIXED, "train.max_steps=3", f"seed={seed}", f"run_dir={run}") == 0
    assert losses(runs["one"]) == losses(runs["same"]) and losses(runs["one"]) != losses(runs["other"])
    one, same, other = (weights(run) for run in runs.values())
    assert all(torch.equal(same[name], weight) for name, weight in one.items())
    assert not all(torch.equal(other[name], weight) for name, weight in one.items())


def test_a_finished_run_is_not_trained_again(data: Path, tmp_path: Path) -> None:
    tokens = (*SUPERVISED, *MIXED, "train.max_steps=2", f"run_dir={tmp_path / 'run'}")
    assert start(data, *tokens) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert start(data, *tokens) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert len(events(tmp_path / "run", "start")) == len(events(tmp_path / "run", "finish")) == 1
