"""Two ranks train what one rank trains: one torchrun launch runs every stage, this process the same on one rank."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loops_tiny import comparable, events, lines, losses, make_job, shard_bytes, start, upcycled, weights
from two_ranks import (
    ADAPTER,
    ENDED,
    ENDED_POLICY,
    FP32,
    MIXTURE,
    MIXTURE_OF_EXPERTS,
    POLICY,
    POLICY_OF_EXPERTS,
    RESUMED_AT,
    SPLIT,
    STEPS,
    STOPPED,
    stages,
)

from sail_train.data.stream import Stream
from sail_train.loops.setup import make_processor

SCRIPT = Path(__file__).parent / "two_ranks.py"

TOLERANCE = 2e-6
"""Relative, of a loss. Losses and gradients are sums of a few hundred fp32 terms (6e-8 each) in another order; AdamW
divides each gradient by its own size, so the differences neither grow nor shrink with it, and ten steps add up to
1.5e-7 in fact. A lost or doubled row, a wrong denominator or a missed reduction shows from 1e-2 on."""


@pytest.fixture(scope="module")
def mixture(trained: Path) -> Path:
    folder = trained.with_name("upcycled")
    return folder if folder.exists() else upcycled(trained, folder)


@pytest.fixture(scope="module")
def launch(
    data: Path, trained: Path, mixture: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, object]]]:
    root = tmp_path_factory.mktemp("two-ranks")
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *ranks, str(SCRIPT), str(data), str(trained), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    (root / "stderr.txt").write_text(done.stderr)
    assert done.returncode == 0, done.stderr[-4000:]
    return root, [json.loads((root / f"results-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(data: Path, trained: Path, mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same stages on one rank, each step's rows in one micro batch."""
    root = tmp_path_factory.mktemp("one-rank")
    whole = "data.micro_batch=4"
    assert start(data, *MIXTURE, whole, f"run_dir={root / 'mixture'}") == 0
    assert start(data, *ENDED, whole, f"run_dir={root / 'ended'}") == 0
    assert start(data, *ENDED_POLICY, f"parent={trained}", f"run_dir={root / 'ended-policy'}") == 0
    assert start(data, *ADAPTER, whole, f"parent={trained}", f"run_dir={root / 'adapter'}") == 0
    assert start(data, *POLICY, f"parent={trained}", f"run_dir={root / 'policy'}") == 0
    assert start(data, *MIXTURE_OF_EXPERTS, whole, f"run_dir={root / 'experts'}") == 0
    assert start(data, *POLICY_OF_EXPERTS, f"parent={mixture}", f"run_dir={root / 'expert-policy'}") == 0
    assert start(data, *stages(str(trained))["sampled"], f"run_dir={root / 'sampled'}") == 0
    return root


def test_every_stage_ended_as_it_should_on_both_ranks(launch: tuple[Path, list[dict[str, object]]]) -> None:
    wrong = {"three-streams": 2, "odd-prompts": 2, "odd-groups": 2, "no-data": 2}
    for results in launch[1]:
        assert results == {name: wrong.get(name, 0) for name in stages("parent")}


@pytest.mark.parametrize("stage", FP32)
def test_zero_gives_the_losses_of_one_rank_with_the_whole_batch(
    launch: tuple[Path, list[dict[str, object]]], alone: Path, stage: int
) -> None:
    run = launch[0] / f"mixture-{stage}"
    for name in ("loss", "loss/read", "loss/frames", "loss/text", "valid/loss", "valid/loss/text"):
        expected = losses(alone / "mixture", name)
        assert losses(run, name) == pytest.approx(expected, rel=TOLERANCE), name
    assert len(losses(run)) == STEPS and losses(run)[-1] < 0.9 * losses(run)[0]
    # what is counted, and not computed, is the same to the last bit
    counted = ("step", "samples", "tokens", "trained_tokens", "images", "fill", "samples/text", "tokens/frames")
    for mine, theirs in zip(lines(run), lines(alone / "mixture"), strict=True):
        assert {name: mine[name] for name in counted if name in mine} == pytest.approx(
            {name: theirs[name] for name in counted if name in theirs}, rel=1e-12
        )


@pytest.mark.parametrize("stage", FP32)
def test_zero_gives_the_weights_of_one_rank(
    launch: tuple[Path, list[dict[str, object]]], alone: Path, stage: int
) -> None:
    expected = weights(alone / "mixture")
    found = weights(launch[0] / f"mixture-{stage}")
    assert found.keys() == expected.keys()
    # AdamW's step has the size of the learning rate, 3e-3, however small a gradient is: where one is near nothing its
    # rounding shows, as a share of the step; elsewhere it is that of fp32
    distances = torch.cat([(found[name] - weight).abs().flatten() for name, weight in expected.items()])
    assert distances.max() < 3e-5 and distances.mean() < 3e-8


def test_rows_of_every_kind_came_and_a_rank_was_without_images(data: Path) -> None:
    """What the comparison above rests on: each rank's steps, rebuilt here."""
    config = make_job(data, *MIXTURE, *SPLIT).config
    processor = make_processor(config)
    kinds, images = set(), []
    for rank in (0, 1):
        with Stream(config.data, processor, seed=config.seed, rank=rank, world=2) as stream:
            steps = [next(stream) for _ in range(STEPS)]
        for batch in (batch for step in steps for batch in step.batches):
            kinds.add("text" if not len(batch.grids) else "mixed" if "text" in batch.sources else "images")
        images.append([sum(len(batch.grids) for batch in step.batches) for step in steps])
    assert kinds == {"text", "mixed", "images"}
    assert any(bool(first) != bool(second) for first, second in zip(*images, strict=True)), images


@pytest.mark.parametrize("stage", [0, 3])
def test_rows_that_change_hands_change_no_loss(
    launch: tuple[Path, list[dict[str, object]]], alone: Path, stage: int
) -> None:
    """The same rows on other ranks: sums in another order, and no other difference, to the tolerance of above."""
    run, plain = launch[0] / f"exchanged-{stage}", launch[0] / f"mixture-{stage}"
    for name in ("loss", "grad_norm", "loss/read", "valid/loss"):
        assert losses(run, name) == pytest.approx(losses(plain, name), rel=5 * TOLERANCE), name
        assert losses(run, name) == pytest.approx(losses(alone / "mixture", name), rel=5 * TOLERANCE), name
    shares = [f"mix/{kind}/{source}" for kind in ("asked", "samples", "tokens") for source in ("read", "text")]
    for name in ("samples", "tokens", "trained_tokens", "images", "samples/text", *shares):
        assert losses(run, name) == losses(plain, name) == losses(alone / "mixture", name), name
    assert sum(losses(run, "fill")) == pytest.approx(sum(losses(plain, "fill")), rel=1e-12)
    before, after = (sum(losses(path, "balance/total")) / STEPS for path in (plain, run))
    assert before < after <= 1, (before, after)
    assert all(0 < value <= 1 for value in losses(run, "balance/vit") + losses(run, "balance/llm"))
    assert set(losses(alone / "mixture", "balance/total")) == {1.0}


def test_experts_are_balanced_alike_when_rows_change_hands(
    launch: tuple[Path, list[dict[str, object]]], alone: Path
) -> None:
    run, single = launch[0] / "exchanged-experts", alone / "experts"
    for name in ("loss", "grad_norm", "loss/text", *ROUTING):
        assert losses(run, name) == pytest.approx(losses(single, name), rel=1e-5), name
    assert sum(losses(run, "balance/total")) > sum(losses(launch[0] / "experts-3", "balance/total"))
    assert losses(run, "mix/tokens/text") == losses(single, "mix/tokens/text"), "the work's own metrics come through"


def test_a_run_stopped_on_two_ranks_goes_on_on_one(
    launch: tuple[Path, list[dict[str, object]]], alone: Path, data: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(launch[0] / "stopped", tmp_path / "stopped")
    for later in sorted((run / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(later)
    (run / "outcome.json").unlink()
    assert start(data, *STOPPED, "engine.zero_stage=0", "data.micro_batch=2", f"run_dir={run}") == 0
    (resumed,) = events(run, "resume")
    assert resumed["checkpoint"].endswith(str(RESUMED_AT)) and resumed["world_size"] == 1
    for name in ("loss", "loss/text", "valid/loss", "mix/tokens/read"):
        assert losses(run, name) == pytest.approx(losses(alone / "mixture", name), rel=TOLERANCE), name
    assert len(losses(run)) == STEPS


def test_the_data_ends_on_two_ranks_after_the_steps_of_one(
    launch: tuple[Path, list[dict[str, object]]], alone: Path, data: Path, tmp_path: Path
) -> None:
    run, single = launch[0] / "ended", alone / "ended"
    for name in ("loss", "loss/text", "valid/loss", "mix/tokens/read"):
        assert losses(run, name) == pytest.approx(losses(single, name), rel=5 * TOLERANCE), name
    steps = len(losses(run))
    assert 5 < steps < 500 and losses(run, "samples")[-1] < losses(run, "samples")[0], "the streams end one by one"
    for path in (run, single):
        assert [(told["step"], told["max_steps"]) for told in events(path, "data_exhausted")] == [(steps, 500)]
        assert (path / "checkpoints" / f"step-{steps:08d}").is_dir() and (path / "model").is_dir()
    again = shutil.copytree(run, tmp_path / "again")
    (again / "outcome.json").unlink()
    assert start(data, *ENDED, "data.micro_batch=2", "engine.zero_stage=3", f"run_dir={again}") == 0
    assert [told["step"] for told in events(again, "data_exhausted")] == [steps, steps]
    assert comparable(again) == comparable(run)


def test_prompts_end_on_two_ranks_after_the_batches_of_one(
    launch: tuple[Path, list[dict[str, object]]], alone: Path, data: Path, trained: Path, tmp_path: Path
) -> None:
    """And resumed on the other number of ranks, from the last checkpoint and from one before.

    What is asked is compared: after some updates a rounding may change an answer.
    """

    def asked(path: Path) -> list[tuple[str, str]]:
        return [(record["uid"], record["key"]) for record in lines(path, "samples")]

    run, single = launch[0] / "ended-policy", alone / "ended-policy"
    assert asked(run) == asked(single) and len(set(asked(run))) > 20
    for path in (run, single):
        assert [told["max_steps"] for told in events(path, "data_exhausted")] == [99] and (path / "model").is_dir()
    for kept in (99, 1):
        again = shutil.copytree(run, tmp_path / str(kept))
        for later in sorted((again / "checkpoints").iterdir())[kept:]:
            shutil.rmtree(later)
        (again / "outcome.json").unlink()
        assert start(data, *ENDED_POLICY, f"parent={trained}", f"run_dir={again}") == 0
        assert asked(again) == asked(single) and len(events(again, "data_exhausted")) == 2


def test_data_that_ends_before_the_first_step_is_an_error_on_all_ranks(
    launch: tuple[Path, list[dict[str, object]]],
) -> None:
    assert not events(launch[0] / "no-data", "data_exhausted")
    for rank in (0, 1):
        assert "ended before the first step" in (launch[0] / "no-data" / f"error-rank{rank}.txt").read_text()


def test_a_frozen_tower_that_one_rank_does_not_need_hangs_nothing(
    launch: tuple[Path, list[dict[str, object]]], alone: Path, trained: Path
) -> None:
    assert losses(launch[0] / "adapter-3") == pytest.approx(losses(alone / "adapter"), rel=TOLERANCE)
    before, after = weights(trained), weights(launch[0] / "adapter-3")
    for name, weight in before.items():
        assert torch.equal(after[name], weight) == (not name.startswith("adapter.")), name


@pytest.mark.parametrize("stage", [0, 3])
def test_rollouts_on_two_ranks_are_those_of_one(
    launch: tuple[Path, list[dict[str, object]]], alone: Path, stage: int
) -> None:
    """Every rollout and every answer of the evaluation: its text, reward, advantage, in the same order."""
    run, single = launch[0] / f"policy-{stage}", alone / "policy"
    assert comparable(run)["samples"] == comparable(single)["samples"]
    lengths = [record["tokens"] for record in lines(run, "samples") if "phase" in record]
    assert len(set(lengths)) > 2, "lengths that differ are the point"
    evaluation = [json.loads((path / "evaluation.json").read_text()) for path in (run, single)]
    assert evaluation[0] == evaluation[1]


@pytest.mark.parametrize("stage", [0, 3])
def test_updates_on_two_ranks_are_those_of_one(
    launch: tuple[Path, list[dict[str, object]]], alone: Path, stage: int
) -> None:
    run, single = launch[0] / f"policy-{stage}", alone / "policy"
    assert len(lines(run)) == 2
    for name in ("loss", "grad_norm", "update/entropy", "rollout/reward", "trained_tokens"):
        # sums over advantages of both signs, which nearly cancel: the error is that of the terms, which are of order 1
        assert losses(run, name) == pytest.approx(losses(single, name), rel=1e-5, abs=1e-6), name


ROUTING = ("router/balance_loss", "router/load_max", "router/layer_00/entropy", "router/layer_01/load_max")


@pytest.mark.parametrize("stage", [0, 3])
def test_experts_are_balanced_on_two_ranks_as_on_one(
    launch: tuple[Path, list[dict[str, object]]], alone: Path, stage: int
) -> None:
    """Four micro batches against one, activations recomputed: losses, gradients and what each layer's experts got."""
    run, single = launch[0] / f"experts-{stage}", alone / "experts"
    for name in ("loss", "grad_norm", "loss/text", *ROUTING):
        # a token whose two best experts are as good as equal may go to the other one, by rounding: 1 of some 300
        assert losses(run, name) == pytest.approx(losses(single, name), rel=1e-5), name
        assert len(losses(run, name)) == STEPS
    expected, found = weights(single), weights(run)
    assert found.keys() == expected.keys() and any(".experts.3." in name for name in found)
    distances = torch.cat([(found[name] - weight).abs().flatten() for name, weight in expected.items()])
    assert distances.max() < 1e-4 and distances.mean() < 1e-7


def test_a_policy_with_experts_is_updated_on_two_ranks_as_on_one(
    launch: tuple[Path, list[dict[str, object]]], alone: Path
) -> None:
    """One rank's last micro batches may be empty: what they route must not count."""
    run, single = launch[0] / "expert-policy-3", alone / "expert-policy"
    assert comparable(run)["samples"] == comparable(single)["samples"]
    for name in ("loss", "grad_norm", "update/entropy", "rollout/reward", *ROUTING):
        assert losses(run, name) == pytest.approx(losses(single, name), rel=1e-5, abs=1e-6), name
    assert all(grad_norm > 0 for grad_norm in losses(run, "grad_norm"))


def test_sampled_shards_do_not_depend_on_the_ranks(launch: tuple[Path, list[dict[str, object]]], alone: Path) -> None:
    run, single = launch[0] / "sampled", alone / "sampled"
    assert shard_bytes(run / "shards") == shard_bytes(single / "shards") != {}
    assert comparable(run) == comparable(single)
    assert [{**one, "time": ""} for one in events(run, "sampled")] == [
        {**one, "time": ""} for one in events(single, "sampled")
    ]


def test_ranks_that_do_not_fit_are_told_which_do(launch: tuple[Path, list[dict[str, object]]]) -> None:
    told = (launch[0] / "stderr.txt").read_text()
    assert "error: 2 ranks cannot share num_streams=3" in told and "numbers of ranks that fit: 1" in told
    assert "error: 2 ranks cannot be divided into groups of 3; data.balance_group may be 1, 2" in told
    assert "error: rl.prompts_per_step=3 must be a multiple of the 2 ranks" in told
