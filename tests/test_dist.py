"""One rank without torchrun; two ranks are tested in tests/engine/two_ranks.py."""

import logging
import subprocess
import sys

import pytest

from sail_train import dist


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_alone_is_rank_0_of_1() -> None:
    assert (dist.rank(), dist.world_size(), dist.local_rank(), dist.is_main()) == (0, 1, 0, True)


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (dist.rank(), dist.world_size(), dist.local_rank(), dist.is_main()) == (3, 4, 1, False)


def test_a_rank_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="RANK='first' must be a whole number"):
        dist.rank()


def test_alone_nothing_is_exchanged() -> None:
    assert dist.all_reduce_sums([1, 2.5]) == [1.0, 2.5]
    assert dist.gather_objects({"a": (1, 2)}) == [{"a": [1, 2]}], "as JSON would bring it"
    assert dist.broadcast_json({"a": None}) == {"a": None}
    dist.barrier()


def test_what_is_not_json_does_not_travel() -> None:
    for exchange in (dist.gather_objects, dist.broadcast_json):
        with pytest.raises(TypeError, match="not JSON serializable"):
            exchange({"a": object()})


def test_init_alone_needs_no_port_and_may_be_repeated() -> None:
    code = """
import os, torch
from sail_train import dist
dist.init(timeout_minutes=1)
dist.init()
group = torch.distributed.get_world_size(), torch.distributed.get_backend(), sorted(os.environ.keys() & {"MASTER_PORT"})
dist.shutdown()
dist.shutdown()
print(*group, torch.distributed.is_initialized())
"""
    environment = {"DS_ACCELERATOR": "cpu", "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "1 gloo [] False", done.stderr


def test_several_ranks_without_a_rendezvous_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2 without MASTER_ADDR; start several ranks through torchrun"):
        dist.init()


@pytest.fixture
def package_logger() -> logging.Logger:
    logger = logging.getLogger("sail_train")
    before = logger.handlers, logger.propagate, logger.level
    yield logger
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def test_rank_0_logs_once_however_often_it_is_set_up(
    package_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    dist.setup_logging()
    dist.setup_logging()
    logging.getLogger("sail_train.engine").info("hello")
    assert capsys.readouterr().err.count("hello") == 1


def test_other_ranks_only_warn_and_say_who_they_are(
    package_logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    dist.setup_logging()
    logging.getLogger("sail_train.engine").info("hello")
    logging.getLogger("sail_train.engine").warning("trouble")
    output = capsys.readouterr().err
    assert "hello" not in output and output.startswith("[rank 1] ") and "trouble" in output
