"""The step on one rank, without torchrun."""

import math
import os
import subprocess
import sys
from pathlib import Path

import engine_tiny as tiny
import pytest
import torch

from sail_train.engine.config import EngineConfig, OptimConfig, ScheduleConfig
from sail_train.engine.deepspeed import TrainEngine, TrainingDiverged
from sail_train.types import Batch

STAGE_ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import engine_tiny as tiny
print("digest", tiny.digest_of_a_stage())
"""


@pytest.mark.parametrize(("stage", "precision"), tiny.FP32)
def test_ten_steps_equal_plain_torch(stage: int, precision: str) -> None:
    losses, norms, weights = tiny.reference(10)
    engine = tiny.make_engine(stage, precision)
    results = tiny.run_steps(engine, 0, 10)
    # fp32 sums in another order: 1e-7 relative per sum; AdamW divides by the root of squares, so where a gradient is
    # near 0 the difference in a weight grows to a small share of lr.
    assert [result.loss for result in results] == pytest.approx(losses, rel=2e-6)
    assert [result.grad_norm for result in results] == pytest.approx(norms, rel=2e-5)
    for name, weight in tiny.weights_of(engine).items():
        torch.testing.assert_close(weight, weights[name], atol=2e-5, rtol=0)
    assert min(norms) < tiny.CLIP < max(norms), "both sides of clipping are seen"
    engine.close()


def test_without_clipping_the_gradient_is_taken_whole() -> None:
    _, _, weights = tiny.reference(5, clip=1e9)
    engine = tiny.make_engine(2, gradient_clipping=0.0)
    tiny.run_steps(engine, 0, 5)
    for name, weight in tiny.weights_of(engine).items():
        torch.testing.assert_close(weight, weights[name], atol=2e-5, rtol=0)
    engine.close()


def test_sums_and_extra_are_reported() -> None:
    engine = tiny.make_engine(0)
    batches = tiny.step_batches(0)
    result = engine.step(batches, tiny.loss, tiny.trained_tokens(batches), extra={"rows": 3.0, "loss/a:count": 1.0})
    assert result.sums["rows"] == 3
    assert result.sums["loss/a:count"] == 7 + 1 + 1
    assert result.sums["loss/c"] == 0
    total = sum(value for name, value in result.sums.items() if name in ("loss/a", "loss/b"))
    assert result.loss == pytest.approx(total / 11)
    assert result.lr == {"vision": 5e-4, "adapter": 5e-3, "language": 1.5e-3}, "first of two steps of warmup"
    engine.close()


def test_groups_take_the_learning_rate_of_their_part() -> None:
    engine = tiny.make_engine(1, lr={"vision": 0.0, "adapter": 1e-2, "language": 3e-3})
    result = tiny.run_step(engine, 0)
    rates = {group["name"]: group["lr"] for group in engine._torch.param_groups}
    assert rates == {"adapter": 5e-3, "language": 1.5e-3}
    assert result.lr == {"vision": 0.0, "adapter": 5e-3, "language": 1.5e-3}
    assert engine.trained == {"adapter", "language"}
    engine.close()


def test_a_step_without_a_trained_token_is_refused() -> None:
    engine = tiny.make_engine(0)
    with pytest.raises(ValueError, match="at least one trained token"):
        engine.step([tiny.make_batch(0, trained=0)], tiny.loss, 0.0)
    engine.close()


def test_bad_steps_in_a_row_end_training(caplog: pytest.LogCaptureFixture) -> None:
    engine = tiny.make_engine(0, max_bad_steps=3)
    bad = tiny.spoilt_loss("loss", math.nan, rank=0)
    for _ in range(2):
        assert tiny.run_step(engine, 0, bad).skipped
    assert not tiny.run_step(engine, 0).skipped, "a good step in between starts the count again"
    assert engine.bad_in_a_row == 0 and engine.skipped_count == 2
    tiny.run_step(engine, 0, bad)
    tiny.run_step(engine, 0, bad)
    with pytest.raises(TrainingDiverged, match="3 steps in a row.*max_bad_steps=3"):
        tiny.run_step(engine, 0, bad)
    engine.close()


def test_a_bad_loss_names_its_samples(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    engine = tiny.make_engine(0)
    with caplog.at_level("WARNING", logger="sail_train"):
        tiny.run_step(engine, 2, tiny.spoilt_loss("loss", math.inf, rank=0))
    assert "micro batch 3: loss inf on sample-203" in caplog.text
    assert "skipped on all ranks" in caplog.text
    engine.close()


def test_activation_checkpointing_changes_no_result() -> None:
    module = tiny.Packed()
    plain, checkpointed = tiny.make_engine(0), tiny.make_engine(0, module=module, activation_checkpointing=True)
    assert module.vlm.checkpointed
    expected = [result.loss for result in tiny.run_steps(plain, 0, 3)]
    assert [result.loss for result in tiny.run_steps(checkpointed, 0, 3)] == pytest.approx(expected, rel=1e-6)
    plain.close()
    checkpointed.close()


@pytest.mark.parametrize(("stage", "precision"), [mode for mode in tiny.MODES if mode[0] > 0])
def test_offloaded_optimizer_gives_the_same_steps(stage: int, precision: str) -> None:
    plain, engine = tiny.make_engine(stage, precision), tiny.make_engine(stage, precision, offload_optimizer=True)
    expected = tiny.run_steps(plain, 0, 3) + [tiny.run_step(plain, 3, text_only)] + tiny.run_steps(plain, 4, 6)
    results = tiny.run_steps(engine, 0, 3)
    assert tiny.run_step(engine, 9, tiny.spoilt_loss("gradient", math.nan, rank=0)).skipped
    results += [tiny.run_step(engine, 3, text_only)] + tiny.run_steps(engine, 4, 6)
    for found, right in zip(results, expected, strict=True):
        assert found.loss == pytest.approx(right.loss, rel=2e-6 if precision == "fp32" else 1e-3)
        assert found.grad_norm == pytest.approx(right.grad_norm, rel=2e-5 if precision == "fp32" else 1e-2)
    plain.close()
    engine.close()


def text_only(module: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """A loss that uses neither vision nor adapter."""
    return -module(batch, images=False).sum(), {}


def test_parts_must_hold_every_parameter_once() -> None:
    module = tiny.Packed()
    parts = tiny.parts_of(module)
    for wrong in ({**parts, "vision": parts["vision"][1:]}, {**parts, "again": parts["vision"]}):
        with pytest.raises(AssertionError, match="every parameter once"):
            TrainEngine(
                module,
                parts=wrong,
                optim=OptimConfig(lr={"language": 1.0}),
                schedule=ScheduleConfig(),
                engine=EngineConfig(),
                max_steps=1,
                accumulation=1,
            )


def test_a_stage_gives_the_same_bits_alone_after_another_and_under_torchrun(tmp_path: Path) -> None:
    first = tiny.make_engine(3)
    tiny.run_steps(first, 0, 3)
    with first.unsharded() as module, torch.no_grad():
        module(tiny.make_batch(1))
    first.close()
    found = {f"digest {tiny.digest_of_a_stage()}"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    script = tmp_path / "script.py"
    script.write_text(STAGE_ALONE)
    for launcher in ([], torchrun):
        command = [sys.executable, *launcher, str(script), str(Path(__file__).parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        found.add(done.stdout.strip())  # all of it: DeepSpeed prints nothing
    assert len(found) == 1, found


def test_nothing_is_compiled_or_replaced(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import torch, engine_tiny as tiny\n"
    code += "linear, compile = torch.nn.functional.linear, torch.compile\n"
    code += "[tiny.run_step(tiny.make_engine(stage, precision), 0) for stage, precision in tiny.MODES]\n"
    code += "assert torch.nn.functional.linear is linear and torch.compile is compile\n"
    code += "assert 'torch._inductor.compile_fx' not in sys.modules"
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == done.stderr == "", "it is quiet"
    assert list(tmp_path.iterdir()) == []
