"""From sums to the record."""

import engine_tiny as tiny
import pytest
import torch

from sail_train import cost
from sail_train.engine import metrics
from sail_train.engine.config import LogConfig, TrainConfig
from sail_train.engine.deepspeed import StepResult
from sail_train.engine.metrics import Metrics, local_sums, means
from sail_train.engine.rundir import RunDir

TOWER = cost.Tower(layers=2, hidden=8, intermediate=16, heads=2, kv_heads=2, head_dim=4, causal=True)
SHAPE = cost.ModelShape(
    vision=TOWER, patch_dim=6, merge=4, adapter_hidden=8, language=TOWER, vocab=tiny.VOCAB, tied=True
)


def test_pairs_become_means() -> None:
    sums = {"loss/a": 6.0, "loss/a:count": 4.0, "loss/b": 0.0, "loss/b:count": 0.0, "tokens": 9.0}
    assert means(sums) == {"loss/a": 1.5, "tokens": 9.0}


def test_batches_are_counted() -> None:
    batches = tiny.step_batches(1)
    sums = local_sums(batches, SHAPE, {"language"})
    assert {name: sums[name] for name in ("samples", "tokens", "trained_tokens", "images")} == {
        "samples": 4,
        "tokens": 28,
        "trained_tokens": 7 + 3 + 2,
        "images": 4,
    }
    expected = [SHAPE.train_flops([7], [7], trained={"language"}, num_trained=n) for n in (7, 3, 2, 0)]
    assert sums["flops"] == pytest.approx(sum(expected))
    assert "flops" not in local_sums(batches, None, {"language"})


def test_a_gpu_that_is_known_has_its_mfu(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        device = torch.device("cpu")
        step_count = 1

    monkeypatch.setattr(metrics, "_peak", lambda engine: 1e6)
    found = Metrics(
        RunDir(tmp_path),
        Engine(),
        TrainConfig(max_steps=1),
        LogConfig(),
        shape=SHAPE,
        settings={},
    )
    sums = {"tokens": 10.0, "flops": 5e5}
    with found:
        found.record(StepResult(loss=1.0, grad_norm=1.0, lr={}, skipped=False, sums=sums), {})
    assert found.last["mfu"] == pytest.approx(0.5 / found.last["seconds"])
    assert "flops" not in found.last
    assert found.state() == {"tokens": 10.0, "seconds": found.last["seconds"], "last": found.last}


def test_no_mfu_on_cpu() -> None:
    engine = tiny.make_engine(1, "bf16")
    assert metrics._peak(engine) is None
    engine.close()
