"""What `TrainEngine.load` refuses, and what it brings back beside weights."""

import resource
from pathlib import Path

import engine_tiny as tiny
import pytest
import safetensors.torch
import torch

from sail_train.engine.checkpoint import Checkpoints, SaveFailed


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    engine = tiny.make_engine(0)
    engine.module.vlm.steps_seen.fill_(7)
    tiny.run_steps(engine, 0, 2)
    engine.skipped_count = 3
    engine.save(tmp_path)
    engine.close()
    return tmp_path


def test_counters_and_buffers_come_back(saved: Path) -> None:
    engine = tiny.make_engine(0, module=tiny.Packed(seed=5))
    engine.load(saved)
    assert (engine.step_count, engine.skipped_count, engine.bad_in_a_row) == (2, 3, 0)
    assert float(engine.module.vlm.steps_seen) == 7
    engine.close()


def test_loading_into_an_engine_that_has_trained_rolls_it_back(saved: Path) -> None:
    engine = tiny.make_engine(2)
    losses = [result.loss for result in tiny.run_steps(engine, 0, 4)][2:]
    engine.load(saved)
    assert [result.loss for result in tiny.run_steps(engine, 2, 4)] == pytest.approx(losses, rel=2e-6)
    engine.close()


def test_other_trained_parts_are_refused(saved: Path) -> None:
    engine = tiny.make_engine(0, lr={"adapter": 1e-2})
    with pytest.raises(ValueError, match=r"trained other parameters.*restore model and optim\.lr"):
        engine.load(saved)
    engine.close()


def test_other_frozen_weights_are_refused(tmp_path: Path) -> None:
    engine = tiny.make_engine(0, lr={"adapter": 1e-2})
    engine.save(tmp_path)
    engine.close()
    other = tiny.make_engine(0, lr={"adapter": 1e-2}, module=tiny.Packed(seed=5))
    with pytest.raises(ValueError, match="other frozen weights.*restore the parents"):
        other.load(tmp_path)
    other.close()


def test_missing_elements_are_refused(saved: Path) -> None:
    file = next(saved.glob("optimizer-*.safetensors"))
    tensors = safetensors.torch.load_file(file)
    tensors = {name: value for name, value in tensors.items() if not name.startswith("vlm.adapter.weight@")}
    safetensors.torch.save_file(tensors, file)
    engine = tiny.make_engine(0)
    with pytest.raises(ValueError, match=r"has 0 of 64 elements of vlm\.adapter\.weight"):
        engine.load(saved)
    engine.close()


def test_nothing_in_a_checkpoint_is_a_pickle(saved: Path) -> None:
    assert {path.suffix for path in saved.iterdir()} == {".safetensors", ".json"}
    for path in saved.glob("*.safetensors"):
        assert all(isinstance(value, torch.Tensor) for value in safetensors.torch.load_file(path).values())


def test_a_file_that_cannot_be_written_whole_is_a_failed_save(tmp_path: Path) -> None:
    """A limit on file size stands for a full disk: safetensors has its own error for it."""
    engine = tiny.make_engine(0)
    checkpoints = Checkpoints(tmp_path, keep=2)
    good = checkpoints.save(1, engine.save)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(SaveFailed, match=r"not saved \(write\): rank 0"):
            checkpoints.save(2, engine.save)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.latest() == (good, [])
    assert [path.name for path in tmp_path.iterdir()] == [good.name]
    engine.close()
