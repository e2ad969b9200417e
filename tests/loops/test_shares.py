"""What metrics.jsonl says about where the data came from and how evenly the ranks share its cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loops_tiny import MIXED, SUPERVISED, losses, start

from sail_train.engine.deepspeed import StepResult
from sail_train.loops.shares import Shares, all_costs, evenness


def result(**sums: float) -> StepResult:
    named = {name.replace("_", "/"): value for name, value in sums.items()}
    return StepResult(loss=0.0, grad_norm=0.0, lr={}, skipped=False, sums=named)


def test_evenness_is_the_mean_over_ranks_by_the_most_where_they_wait() -> None:
    ranks = [[(4.0, 1.0), (0.0, 3.0)], [(2.0, 3.0), (2.0, 1.0)]]
    summed = [sum(pair) for pair in zip(*(all_costs(c, rank=r, world=2) for r, c in enumerate(ranks)), strict=True)]
    assert evenness(summed, world=2, per_micro_step=False) == {
        "balance/vit": 1.0, "balance/llm": 1.0, "balance/total": 1.0
    }  # fmt: skip
    assert evenness(summed, world=2, per_micro_step=True) == {
        "balance/vit": (3 + 1) / (4 + 2), "balance/llm": (2 + 2) / (3 + 3), "balance/total": (5 + 3) / (5 + 3)
    }  # fmt: skip
    assert evenness([0.0] * 4, world=2, per_micro_step=True)["balance/vit"] == 1.0


def test_shares_are_of_the_run_so_far_and_go_on_after_a_resume() -> None:
    def asked(step: int) -> dict[str, float]:
        return {"a": 1.0} if step < 1 else {"a": 0.5, "b": 0.5}

    shares = Shares(asked, ["a", "b"])
    first = shares.add(result(samples_a=4, samples_b=0, tokens_a=40, tokens_b=0))
    assert first["mix/asked/b"] == first["mix/samples/b"] == 0 and first["mix/tokens/a"] == 1
    saved = json.loads(json.dumps(shares.state()))
    again = Shares(asked, ["a", "b"])
    again.load_state(saved)
    for one in (shares, again):
        found = one.add(result(samples_a=1, samples_b=3, tokens_a=10, tokens_b=50))
        assert found == {
            "mix/asked/a": 0.75, "mix/asked/b": 0.25, "mix/samples/a": 5 / 8, "mix/samples/b": 3 / 8,
            "mix/tokens/a": 0.5, "mix/tokens/b": 0.5,
        }  # fmt: skip
    again.pass_over()
    more = again.add(result(samples_a=0, samples_b=0, tokens_a=0, tokens_b=0))
    assert more["mix/asked/b"] == 3 * 0.5 / 4 and more["mix/samples/a"] == found["mix/samples/a"]
    old = Shares(asked, ["a", "b"])
    old.load_state({})
    assert old.add(result(samples_a=0, samples_b=0, tokens_a=0, tokens_b=0))["mix/samples/a"] == 0


def test_a_run_says_what_was_asked_and_what_came(data: Path, tmp_path: Path) -> None:
    ended = [f"data.sources.{name}.epochs=1" for name in ("read", "frames", "text")]
    run = tmp_path / "run"
    small = ("data.seq_length=1024", "data.max_patches=4096", "train.save_every=0")
    assert start(data, *SUPERVISED, *MIXED, *small, *ended, "train.max_steps=5000", f"run_dir={run}") == 0
    assert losses(run, "mix/asked/read")[0] == pytest.approx(0.5)
    for kind in ("samples", "tokens"):
        last = [losses(run, f"mix/{kind}/{name}")[-1] for name in ("read", "frames", "text")]
        assert sum(last) == pytest.approx(1) and all(share > 0 for share in last)
        counts = sum(losses(run, f"{kind}/read")) / sum(losses(run, kind))
        assert losses(run, f"mix/{kind}/read")[-1] == pytest.approx(counts)
