"""Checks that need two ranks, all in one launch: torchrun --nproc-per-node 2 two_ranks.py <directory> [<part of name>]

Each rank writes {check: "ok" or a traceback}, up to its first failure, to <directory>/results-<rank>.json;
test_two_ranks.py reads them.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine_packed as packed
import engine_tiny as tiny
import torch
from engine_work import TinyWork, train_tiny

from sail_train import dist
from sail_train.engine import gather
from sail_train.engine.checkpoint import Checkpoints, SaveFailed
from sail_train.engine.config import EngineConfig
from sail_train.engine.deepspeed import ReplicasDiffer
from sail_train.engine.loop import RunDir
from sail_train.engine.partition import Partitioned
from sail_train.engine.sums import Sums
from sail_train.generate.generator import Generator
from sail_train.model.build import save_model
from sail_train.types import Sampling

ROOT = Path(sys.argv[1])
BUILDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "untied": {"tie_word_embeddings": False, "vision": packed.AIMV2},
    "mixture": packed.MIXTURE,
    "siglip": {"vision": packed.SIGLIP},
    "mistral": {"model_type": "mistral", "max_position_embeddings": 64},
}
"""Models that are built in shares: experts released one by one, sinusoids, parts that draw themselves."""
BAD = [("loss", math.nan), ("loss", math.inf), ("gradient", math.nan), ("gradient", -math.inf)]


def check_parity(stage: int, precision: str) -> None:
    """Ten steps equal one process with the whole batch and plain torch AdamW."""
    losses, norms, weights = tiny.reference(10)
    engine = tiny.make_engine(stage, precision)
    results = tiny.run_steps(engine, 0, 10)
    # fp32: sums of a few hundred terms in another order differ by some 1e-7 relative, AdamW turns that into at most a
    # fraction of lr where a gradient is near 0. bf16: 8 bits of mantissa in weights and activations.
    loss_tolerance, weight_tolerance = (2e-6, 2e-5) if precision == "fp32" else (2e-2, 5e-2)
    for step, result in enumerate(results):
        assert abs(result.loss - losses[step]) < loss_tolerance * abs(losses[step]), (step, result.loss, losses[step])
        assert abs(result.grad_norm - norms[step]) < 10 * loss_tolerance * norms[step], (step, result.grad_norm, norms)
    for name, weight in tiny.weights_of(engine).items():
        assert torch.allclose(weight, weights[name], atol=weight_tolerance, rtol=0), (name, weight - weights[name])
    assert engine.step_count == 10 and not any(result.skipped for result in results)
    engine.close()


def check_skip(stage: int, precision: str) -> None:
    """Bad steps, in the loss or in the gradient of one rank, change no bit; the run goes on as if they had not been."""
    control, engine = tiny.make_engine(stage, precision, max_bad_steps=5), tiny.make_engine(stage, precision)
    for current in (control, engine):
        tiny.run_steps(current, 0, 2)
    before, rates = tiny.bits(engine), engine.learning_rates()
    for count, (kind, bad) in enumerate(BAD, start=1):
        result = tiny.run_step(engine, 77, tiny.spoilt_loss(kind, bad, rank=count % 2))
        assert result.skipped and not math.isfinite(result.loss + result.grad_norm), (kind, bad)
        assert (engine.step_count, engine.skipped_count, engine.bad_in_a_row) == (2, count, count)
        assert tiny.bits(engine) == before and engine.learning_rates() == rates, (kind, bad)
    losses = [[result.loss for result in tiny.run_steps(current, 2, 4)] for current in (control, engine)]
    assert losses[0] == losses[1]
    assert tiny.bits(engine) == tiny.bits(control) != before
    control.close()
    engine.close()


def check_resume(stage: int, precision: str) -> None:
    """Saved after two steps and loaded into a new engine, the next steps give the same bits."""
    directory = ROOT / f"two-ranks-{stage}-{precision}"
    engine = tiny.make_engine(stage, precision)
    tiny.run_steps(engine, 0, 2)
    tiny.save(engine, directory)
    resumed = tiny.make_engine(stage, precision, module=tiny.Packed(seed=5))
    resumed.load(directory)
    assert resumed.step_count == 2 and tiny.bits(resumed) == tiny.bits(engine)
    losses = [result.loss for result in tiny.run_steps(engine, 2, 5)]
    assert [result.loss for result in tiny.run_steps(resumed, 2, 5)] == losses
    assert tiny.bits(resumed) == tiny.bits(engine)
    directory.with_suffix(".json").write_text(json.dumps(losses))  # for test_two_ranks.py, which resumes on one rank
    engine.close()
    resumed.close()


def check_resume_at_another_stage() -> None:
    """A checkpoint of one ZeRO stage continues at every other one."""
    directory = ROOT / "restage"
    source = tiny.make_engine(2)
    tiny.run_steps(source, 0, 2)
    tiny.save(source, directory)
    expected = tiny.weights_of(source)
    losses = [result.loss for result in tiny.run_steps(source, 2, 4)]
    for stage in (0, 1, 3):
        engine = tiny.make_engine(stage, module=tiny.Packed(seed=5))
        engine.load(directory)
        assert all(torch.equal(weight, expected[name]) for name, weight in tiny.weights_of(engine).items()), stage
        for result, loss in zip(tiny.run_steps(engine, 2, 4), losses, strict=True):
            assert abs(result.loss - loss) < 2e-6 * loss, stage
        engine.close()
    source.close()


def check_resume_from_one_rank() -> None:
    """A checkpoint that one rank wrote continues on two (test_two_ranks.py wrote it, and compares)."""
    engine = tiny.make_engine(3, module=tiny.Packed(seed=5))
    engine.load(ROOT / "one-rank")
    losses = [result.loss for result in tiny.run_steps(engine, 2, 4)]
    for loss, expected in zip(losses, json.loads((ROOT / "one-rank.json").read_text()), strict=True):
        assert abs(loss - expected) < 2e-6 * expected
    engine.close()


def check_frozen_parts() -> None:
    """Frozen parts keep their bits, and a checkpoint knows on which frozen weights it stood."""
    for stage in (0, 1, 2, 3):
        engine = tiny.make_engine(stage, lr={"adapter": 1e-2})
        before = tiny.weights_of(engine)
        tiny.run_steps(engine, 0, 2)
        for name, weight in tiny.weights_of(engine).items():
            assert torch.equal(weight, before[name]) == ("adapter" not in name), (stage, name)
        tiny.save(engine, ROOT / f"frozen-{stage}")
        engine.load(ROOT / "frozen-0")  # the same frozen weights, however they are sharded
        other = tiny.make_engine(stage, lr={"adapter": 1e-2}, module=tiny.Packed(seed=5))
        try:
            other.load(ROOT / f"frozen-{stage}")
            raise AssertionError("loaded on other frozen weights")
        except ValueError as error:
            assert "other frozen weights" in str(error)
        engine.close()
        other.close()


def check_generation_with_different_numbers_of_forwards() -> None:
    """Ranks may stop at different lengths inside `unsharded`, and training goes on as if nothing had been."""
    for stage, precision in [(0, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")]:
        control, engine = tiny.make_engine(stage, precision), tiny.make_engine(stage, precision)
        for current in (control, engine):
            tiny.run_steps(current, 0, 2)
        for _ in range(2):
            with engine.unsharded() as module, torch.no_grad():
                for index in range(3 + 4 * dist.rank()):
                    logprobs = module(tiny.make_batch(index))
                    assert torch.isfinite(module.vlm.language_model[0].weight).all() and logprobs.shape == (5,)
            losses = [[result.loss for result in tiny.run_steps(current, 2, 4)] for current in (control, engine)]
            assert losses[0] == losses[1], (stage, precision, losses)
        state = engine.full_state_dict()
        if dist.is_main():
            module = tiny.Packed()
            module.load_state_dict(state)
            assert state["vlm.adapter.weight"].shape == (tiny.HIDDEN, tiny.HIDDEN)
        else:
            assert state == {}
        control.close()
        engine.close()


def check_packed_model_trains_and_generates() -> None:
    """The real model: ranks with and without images, rollouts of different lengths, every stage alike."""
    losses: dict[str, list[float]] = {}
    for stage, precision, checkpointing in [
        (0, "fp32", False),
        (2, "fp32", True),
        (3, "fp32", True),
        (3, "bf16", False),
    ]:
        engine = packed.make_packed_engine(stage, precision, activation_checkpointing=checkpointing)
        found = losses.setdefault(f"{stage} {precision}", [])
        for step in range(4):
            batches = [packed.packed_batch(10 * step + 2 * dist.rank() + i, image=dist.rank() == i) for i in range(2)]
            result = engine.step(batches, packed.packed_loss, 4.0 * 7)
            assert not result.skipped
            found.append(result.loss)
            engine.module.eval()
            with engine.unsharded() as module, torch.no_grad():
                generator = Generator(module.vlm, stop_token_ids=(packed.EOS,), pad_token_id=packed.PAD)
                sampling = Sampling(max_new_tokens=2 + 5 * dist.rank(), n=2)
                drawn = generator.generate(packed.prompts(1 + dist.rank()), sampling)
            assert len(drawn) == 1 + dist.rank() and all(len(completions) == 2 for completions in drawn)
            with torch.no_grad():  # a validation: as many calls on every rank, weights where they are
                assert torch.isfinite(packed.packed_loss(engine.module, batches[0])[0])
            engine.module.train()
        engine.close()
    for name, found in losses.items():
        tolerance = 2e-6 if "fp32" in name else 2e-2
        for loss, expected in zip(found, losses["0 fp32"], strict=True):
            assert abs(loss - expected) < tolerance * expected, losses


def check_a_model_built_in_shares_is_the_whole_one() -> None:
    """From a seed, a whole folder and parts with rows to add: every parameter and buffer has the same bits."""
    configs = {name: packed.packed_config(**options) for name, options in BUILDS.items()}
    for name, config in configs.items():
        folder = ROOT / "built" / name
        if dist.is_main():
            save_model(packed.packed_model(config, seed=3), folder)
        dist.barrier()
        ways: list[dict[str, Any]] = [
            {},
            {"parents": {"model": str(folder)}},
            {"parents": {"vision": str(folder), "language": str(folder)}, "rows": 67},
        ]
        for way in ways:
            whole = packed.packed_model(config, **way)
            for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                shared = packed.packed_model(config, placement=in_shares(precision), **way)
                assert all(parameter.numel() == 0 for parameter in shared.parameters())
                expected = {key: value.detach().to(dtype) for key, value in whole.named_parameters()}
                with gather.gathered(shared):
                    assert_same(dict(shared.named_parameters()), expected)
                assert_same(dict(shared.named_buffers()), dict(whole.named_buffers()))  # rotary frequencies in fp32
                names = [key for key, _ in shared.named_parameters(remove_duplicate=False)]
                assert names == [key for key, _ in whole.named_parameters(remove_duplicate=False)]
                assert len(expected) == len(list(shared.parameters()))  # tied still
                assert shared.training and shared.generation_config == whole.generation_config


def check_training_a_model_built_in_shares() -> None:
    """Losses, checkpoints, generation, the saved folder: the same bits as of a model that was whole first."""
    for name, precision in (("dense", "fp32"), ("mixture", "fp32"), ("mixture", "bf16"), ("siglip", "fp32")):
        config, images = packed.packed_config(**BUILDS[name]), name != "siglip"  # whose one picture has 16 patches
        models = [packed.packed_model(config), packed.packed_model(config, placement=in_shares(precision))]
        whole, shared = (packed.make_packed_engine(3, precision, vlm=vlm) for vlm in models)
        losses = [[packed.ranks_step(engine, step, images=images) for step in range(3)] for engine in (whole, shared)]
        assert losses[0] == losses[1], (name, precision, losses)
        directory = ROOT / f"shares-{name}-{precision}"
        tiny.save(whole, directory)
        packed.ranks_step(shared, 3, images=images)
        shared.load(directory)
        states = [engine.full_state_dict() for engine in (whole, shared)]
        assert_same(*states)
        assert not images or packed.ranks_answers(whole) == packed.ranks_answers(shared)
        if dist.is_main():
            folders = [ROOT / f"saved-{name}-{precision}-{number}" for number in range(2)]
            for vlm, state, folder in zip(models, states, folders, strict=True):
                save_model(vlm, folder, state)
            files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
            assert files[0] == files[1]
        whole.close()
        shared.close()


def in_shares(precision: str) -> Partitioned:
    return Partitioned(EngineConfig(zero_stage=3, precision=precision, timeout_minutes=1))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def check_unused_parameter() -> None:
    """A part that a step does not use gets no gradient of an earlier step."""

    def text_only(module: torch.nn.Module, batch: object) -> tuple[torch.Tensor, dict[str, float]]:
        return -module(batch, images=False).sum(), {}

    norms = []
    for stage, precision in tiny.FP32:
        engine = tiny.make_engine(stage, precision)
        tiny.run_step(engine, 0)
        norms.append(tiny.run_step(engine, 1, text_only).grad_norm)
        engine.close()
    assert all(abs(norm - norms[0]) < 1e-5 * norms[0] for norm in norms), norms


def check_replicas_that_differ() -> None:
    """One rank computing with other weights is found and named."""
    engine = tiny.make_engine(1)
    engine.check_replicas()
    if dist.rank() == 1:
        weight = next(engine.module.parameters())
        weight.data.view(-1)[0] = torch.nextafter(weight.data.view(-1)[0], torch.tensor(9.0))
    try:
        engine.check_replicas()
        raise AssertionError("not found")
    except ReplicasDiffer as error:
        assert "rank 1" in str(error)
    engine.close()


def check_dist() -> None:
    """Sums, JSON and broadcasts between ranks."""
    rank = dist.rank()
    assert dist.all_reduce_sums([1.0, 2.0**-40 + rank]) == [2.0, 2.0**-39 + 1]
    assert dist.all_reduce_sums([]) == []
    assert math.isnan(dist.all_reduce_sums([math.nan if rank == 1 else 0.0])[0])
    assert dist.gather_objects({"rank": rank, "text": "é" * 50 * rank}) == [
        {"rank": 0, "text": ""},
        {"rank": 1, "text": "é" * 50},
    ]
    assert dist.broadcast_json(["first", 3.5] if rank == 0 else "ignored") == ["first", 3.5]
    dist.barrier()


def check_sums_with_unknown_names() -> None:
    """Ranks that know different names agree on all of them, whenever they first appear."""
    sums = Sums()
    assert sums.reduce({"a": 1.0, "b": 1.0} if dist.rank() else {"a": 2.0}) == {"a": 3.0, "b": 1.0}
    assert sums.reduce({"a": 1.0}) == {"a": 2.0, "b": 0.0}
    assert sums.reduce({"c": 5.0} if dist.is_main() else {}) == {"a": 0.0, "b": 0.0, "c": 5.0}
    assert sums.reduce({}) == {"a": 0.0, "b": 0.0, "c": 0.0}


def check_failed_save_on_one_rank() -> None:
    """A full disk on one rank is a SaveFailed on all; what was there stays."""
    checkpoints = Checkpoints(ROOT / "failing", keep=2)
    good = checkpoints.save(1, lambda directory: (directory / f"{dist.rank()}.txt").write_text("x") and None)

    def write(directory: Path) -> None:
        (directory / f"{dist.rank()}.txt").write_text("y")
        if dist.rank() == 1:
            raise OSError(28, "No space left on device")

    try:
        checkpoints.save(2, write)
        raise AssertionError("saved")
    except SaveFailed as error:
        assert "rank 1" in str(error) and "No space left" in str(error)
    dist.barrier()
    assert [path.name for path in (ROOT / "failing").iterdir()] == ["step-00000001"]
    assert checkpoints.latest() == (good, [])


def check_signal_to_one_rank() -> None:
    """SIGTERM to rank 1 alone: both save after the same step; resumed, the run equals an uninterrupted one."""

    def tell(step: int) -> None:
        if dist.rank() == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = train_tiny(ROOT / "signal-whole", stage=2)
    stopped = train_tiny(ROOT / "signal-stopped", stage=2, before_step=tell)
    assert (stopped.status, stopped.steps) == ("stopped", 4), stopped
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert dist.gather_objects(stopped.steps) == [4, 4]
    finished = train_tiny(ROOT / "signal-stopped", stage=2)
    assert (finished.status, finished.steps) == ("finished", whole.steps)
    if dist.is_main():
        assert TinyWork.comparable(ROOT / "signal-stopped") == TinyWork.comparable(ROOT / "signal-whole")
        reports = [json.loads(line) for line in (ROOT / "signal-whole" / "quarantine.jsonl").read_text().splitlines()]
        assert {report["rank"] for report in reports} == {0, 1}
    dist.barrier()
    assert RunDir(ROOT / "signal-whole").path.exists()


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    for stage, precision in tiny.MODES:
        yield f"parity-{stage}-{precision}", lambda s=stage, p=precision: check_parity(s, p)
        yield f"resume-{stage}-{precision}", lambda s=stage, p=precision: check_resume(s, p)
        yield f"skip-{stage}-{precision}", lambda s=stage, p=precision: check_skip(s, p)
    for name, check in globals().items():
        if name.startswith("check_") and name not in ("check_parity", "check_resume", "check_skip"):
            yield name.removeprefix("check_"), check


def main() -> None:
    dist.setup_logging()
    dist.init(timeout_minutes=1)
    results = {}
    for name, check in checks():
        if len(sys.argv) > 2 and sys.argv[2] not in name:
            continue
        try:
            check()
            results[name] = "ok"
        except Exception:
            results[name] = traceback.format_exc()
        (ROOT / f"results-{dist.rank()}.json").write_text(json.dumps(results, indent=1))
        if results[name] != "ok":  # the ranks are out of step now
            sys.exit(1)
    dist.shutdown()


if __name__ == "__main__":
    main()
