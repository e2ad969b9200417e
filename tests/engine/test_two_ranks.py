"""What needs two ranks: one torchrun launch runs all of it, each check is a test here."""

import json
import subprocess
import sys
from pathlib import Path

import engine_tiny as tiny
import pytest

SCRIPT = Path(__file__).parent / "two_ranks.py"


def expected_checks() -> list[str]:
    """The names that the script goes through, from its text: importing it would need its arguments."""
    names = [f"{kind}-{stage}-{precision}" for stage, precision in tiny.MODES for kind in ("parity", "resume", "skip")]
    functions = [line[len("def check_") :].split("(")[0] for line in SCRIPT.read_text().splitlines()]
    starts = [line.startswith("def check_") for line in SCRIPT.read_text().splitlines()]
    found = [name for name, is_check in zip(functions, starts, strict=True) if is_check]
    return names + [name for name in found if name not in ("parity", "resume", "skip")]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    root = tmp_path_factory.mktemp("two-ranks")
    engine = tiny.make_engine(1)
    tiny.run_steps(engine, 0, 2)
    tiny.save(engine, root / "one-rank")
    (root / "one-rank.json").write_text(json.dumps([result.loss for result in tiny.run_steps(engine, 2, 4)]))
    engine.close()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run([*command, str(root)], capture_output=True, text=True, timeout=600)
    assert all((root / f"results-{rank}.json").exists() for rank in (0, 1)), done.stderr[-4000:]
    return root, [json.loads((root / f"results-{rank}.json").read_text()) for rank in (0, 1)]


def test_every_check_ran(launch: tuple[Path, list[dict[str, str]]]) -> None:
    for results in launch[1]:
        assert sorted(results) == sorted(expected_checks())


@pytest.mark.parametrize("name", expected_checks())
def test_on_two_ranks(launch: tuple[Path, list[dict[str, str]]], name: str) -> None:
    for rank, results in enumerate(launch[1]):
        assert name in results, "not reached: a check before it failed"
        assert results[name] == "ok", f"rank {rank}: {results[name]}"


@pytest.mark.parametrize(("stage", "precision"), tiny.MODES)
def test_checkpoint_of_two_ranks_continues_on_one(
    launch: tuple[Path, list[dict[str, str]]], stage: int, precision: str
) -> None:
    directory = launch[0] / f"two-ranks-{stage}-{precision}"
    engine = tiny.make_engine(stage, precision, module=tiny.Packed(seed=5))
    engine.load(directory)
    assert engine.step_count == 2
    tolerance = 2e-6 if precision == "fp32" else 2e-2  # the same sums in another order; in bf16 of rounded values
    for result, loss in zip(
        tiny.run_steps(engine, 2, 5), json.loads(directory.with_suffix(".json").read_text()), strict=True
    ):
        assert result.loss == pytest.approx(loss, rel=tolerance)
    engine.close()
