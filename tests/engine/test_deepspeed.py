"""The step on one rank, without torchrun."""

import math
import subprocess
import sys
from pathlib import Path

import engine_tiny as tiny
import pytest
import torch

from sail_train.engine.deepspeed import TrainingDiverged

FORGETS_NOTHING = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
import engine_tiny as tiny
torch.manual_seed(3)
if "after" in sys.argv:
    first = tiny.make_engine(3)
    tiny.run_steps(first, 0, 3)
    with first.unsharded() as module, torch.no_grad():
        module(tiny.make_batch(1))
    first.close()
    torch.manual_seed(3)
engine = tiny.make_engine(0)
tiny.run_steps(engine, 0, 3)
print("digest", tiny.digest(engine, Path(sys.argv[2])), float(torch.rand(())), torch.nn.functional.linear.__module__)
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


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_optimizer_gives_the_same_steps(stage: int) -> None:
    losses, norms, _ = tiny.reference(6)
    engine = tiny.make_engine(stage, offload_optimizer=True)
    results = tiny.run_steps(engine, 0, 3)
    assert tiny.run_step(engine, 9, tiny.spoilt_loss("gradient", math.nan, rank=0)).skipped
    results += tiny.run_steps(engine, 3, 6)
    assert [result.loss for result in results] == pytest.approx(losses, rel=2e-6)
    assert [result.grad_norm for result in results] == pytest.approx(norms, rel=2e-5)
    engine.close()


def test_a_stage_gives_the_same_bits_alone_after_another_and_under_torchrun(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    script = tmp_path / "script.py"
    script.write_text(FORGETS_NOTHING)
    found = set()
    for name, command in {"alone": [sys.executable], "after": [sys.executable], "torchrun": torchrun}.items():
        arguments = [str(script), str(Path(__file__).parent), str(tmp_path / name), name]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        found.add(next(line for line in done.stdout.splitlines() if line.startswith("digest")))
        assert done.stdout.count("\n") == 1, f"DeepSpeed printed: {done.stdout}"
    assert len(found) == 1, found
