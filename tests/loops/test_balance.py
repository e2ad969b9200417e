"""The balance loss around a step, against the formula on the whole batch at once; and in whole stages."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loops_tiny import EXPERTS, MIXED, RL, SUPERVISED, comparable, events, losses, make_job, start, upcycled, weights
from torch import Tensor

from sail_train.engine.deepspeed import StepResult
from sail_train.engine.loop import WorkStep
from sail_train.loops import setup
from sail_train.loops.balance import BalancedWork, routed_tokens
from sail_train.loops.supervised import token_loss
from sail_train.model.build import build_model
from sail_train.model.config import LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.packed import PackedLM
from sail_train.model.router import Routers, balance_loss, load_entropy, load_max
from sail_train.rl.batch import empty_batch
from sail_train.types import IGNORE_INDEX, Batch

COEFFICIENT = 0.3
LENGTHS = (9, 14, 6, 11, 8, 12)
TAKEN = StepResult(loss=1.0, grad_norm=1.0, lr={}, skipped=False)
SKIPPED = replace(TAKEN, skipped=True)


@pytest.fixture(scope="module")
def module() -> PackedLM:
    """A mixture of two layers, in float64: what is compared is exact but for the order of summation."""
    config = ModelConfig(
        vision=VisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2),
        language=LanguageConfig(
            model_type="qwen3_moe", hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, initializer_range=0.4, num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=12,
        ),
    )  # fmt: skip
    vlm = build_model(config, parents={}, seed=0, token_ids={"image": 61, "eos": 62, "pad": 63}, vocab_size=64)
    return PackedLM(vlm).train()


def batch(*numbers: int) -> Batch:
    """Samples of random text, told by their numbers."""
    ids = [torch.randint(0, 60, (LENGTHS[n],), generator=torch.Generator().manual_seed(n)) for n in numbers]
    labels = [torch.cat((each[1:], torch.tensor([IGNORE_INDEX]))) for each in ids]
    lengths = [len(each) for each in ids]
    return Batch(
        input_ids=torch.cat(ids),
        labels=torch.cat(labels),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        patches=torch.zeros(0, 588, dtype=torch.uint8),
        grids=torch.zeros(0, 2, dtype=torch.int64),
        sources=("a",) * len(numbers),
        keys=tuple(map(str, numbers)),
    )


WHOLE = batch(*range(len(LENGTHS)))
EMPTY = empty_batch(588, 63)


class Steps:
    """A `Work` of the same samples at every step, in micro batches of one's choice."""

    at_boundary = True

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self.loaded: Any = None

    def next_step(self) -> WorkStep:
        targets = float(sum((each.labels != IGNORE_INDEX).sum() for each in self.batches))
        return WorkStep(
            batches=self.batches, loss=token_loss, denominator=targets, routed_tokens=routed_tokens(self.batches)
        )

    def state(self) -> Any:
        return {"at": 7}

    def load_state(self, state: Any) -> None:
        self.loaded = state

    def validate(self) -> dict[str, float]:
        return {"loss": 3.0}


def take(work: BalancedWork, module: PackedLM, result: StepResult = TAKEN) -> tuple[float, dict[str, Tensor], Any]:
    """One step as the engine takes it: the mean loss, gradients by name, and what `finish` says."""
    step = work.next_step()
    assert step.finish is not None
    module.zero_grad()
    total = 0.0
    for each in step.batches:
        loss, _ = step.loss(module, each)
        (loss / step.denominator).backward()
        total += float(loss.detach()) / step.denominator
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return total, grads, step.finish(result)


def make(module: PackedLM, *batches: Batch, coefficient: float = COEFFICIENT) -> tuple[BalancedWork, Routers]:
    routers = Routers(module.vlm.language_model)
    return BalancedWork(Steps(batches), routers, coefficient=coefficient), routers


def by_hand(module: PackedLM, load: Tensor | None) -> tuple[float, dict[str, Tensor], Tensor, Tensor]:
    """The same step by the definition: loss, gradients with the balance under `load`, and the step's own f and P."""
    routers = Routers(module.vlm.language_model)
    module.zero_grad()
    with routers.collect() as routed:
        loss, _ = token_loss(module, WHOLE)
    routers.close()
    mean = loss / (WHOLE.labels != IGNORE_INDEX).sum()
    probabilities = torch.stack(routed.probabilities) / len(WHOLE.input_ids)
    extra = 0.0 if load is None else COEFFICIENT * balance_loss(load.float(), probabilities)
    (mean + extra).backward()
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return float(mean.detach()), grads, torch.stack(routed.counts) / len(WHOLE.input_ids), probabilities.detach()


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, grad in expected.items():
        assert (found[name] - grad).abs().max() <= 1e-5 * grad.abs().max() + 1e-7, name


SPLITS = {
    "whole": (WHOLE,),
    "in two": (batch(0, 1, 2), batch(3, 4, 5)),
    "uneven, with empty ones": (EMPTY, batch(0), batch(1, 2, 3, 4), EMPTY, batch(5)),
}


@pytest.mark.parametrize("split", SPLITS)
def test_a_steps_gradient_balances_the_load_of_the_step_before_however_it_is_split(
    module: PackedLM, split: str
) -> None:
    work, routers = make(module, *SPLITS[split])
    _, first, said = take(work, module)
    mean, plain, load, probabilities = by_hand(module, None)
    close(first, plain)  # nothing was known before the first step
    total, second, _ = take(work, module)
    _, balanced, _, _ = by_hand(module, load)
    close(second, balanced)
    gate = "vlm.language_model.model.layers.0.mlp.gate.weight"
    assert (balanced[gate] - plain[gate]).abs().max() > 1e-2 * plain[gate].abs().max()
    assert total == pytest.approx(mean, rel=1e-5), "the reported loss is that of the tokens alone"
    assert said["router/balance_loss"] == pytest.approx(float(balance_loss(load, probabilities.double())), rel=1e-5)
    assert said["router/load_max"] == pytest.approx(float(load_max(load).mean()))
    assert said["router/layer_01/entropy"] == pytest.approx(float(load_entropy(load)[1]))
    assert said.keys() == {f"router/{name}" for name in (
        "balance_loss", "load_max", "entropy", "layer_00/load_max", "layer_00/entropy", "layer_01/load_max",
        "layer_01/entropy")}  # fmt: skip
    routers.close()


def test_a_skipped_step_leaves_no_trace(module: PackedLM) -> None:
    work, routers = make(module, WHOLE)
    take(work, module)
    before = work.state()
    steps = work._work
    steps.batches = (batch(0, 0, 0),)  # type: ignore[attr-defined]
    assert take(work, module, SKIPPED)[2] == {}
    assert work.state() == before
    assert take(work, module)[2] and work.state() != before
    routers.close()


def test_the_load_survives_a_restart_to_the_last_bit(module: PackedLM) -> None:
    work, first = make(module, *SPLITS["in two"])
    take(work, module)
    state = json.loads(json.dumps(work.state()))
    _, expected, _ = take(work, module)
    first.close()
    again, second = make(module, *SPLITS["in two"])
    again.load_state(state)
    _, found, _ = take(again, module)
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())
    assert again._work.loaded == {"at": 7}  # type: ignore[attr-defined]
    assert again.at_boundary and again.validate() == {"loss": 3.0}
    second.close()


def test_a_step_in_which_no_token_trains_changes_nothing(module: PackedLM) -> None:
    work, routers = make(module, EMPTY)
    step = replace(work._work.next_step(), denominator=5.0)
    work._work.next_step = lambda: step  # type: ignore[method-assign]
    assert take(work, module)[2] == {} and work.state()["load"] is None
    routers.close()


@pytest.mark.parametrize("case", ["coefficient 0", "frozen routers"])
def test_without_anything_to_balance_the_load_is_reported_all_the_same(module: PackedLM, case: str) -> None:
    language = module.vlm.language_model
    if case == "frozen routers":
        language.requires_grad_(False)
    try:
        work, routers = make(module, WHOLE, coefficient=0.0 if case == "coefficient 0" else COEFFICIENT)
        work.load_state({"work": None, "load": [[1.7, 0.1, 0.1, 0.1]] * 2})
        _, found, said = take(work, module)
        routers.close()
        _, plain, load, _ = by_hand(module, None)
    finally:
        language.requires_grad_(True)
    close(found, plain)
    assert said["router/load_max"] == pytest.approx(float(load_max(load).mean()))


STAGE = (*SUPERVISED, *MIXED, *EXPERTS, "train.valid_every=3", "valid.read.shards=${data_dir}/eval/read/*.tar")


def test_a_mixture_interrupted_goes_on_bit_by_bit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the balance weighing as much as the loss, and a step lost between the checkpoint and the end."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tokens = (*STAGE, "model.language.router_aux_loss_coef=1.0", "train.max_steps=6", "train.save_every=3")
    assert start(data, *tokens, f"run_dir={whole}") == 0
    steps, next_step = iter(range(4)), BalancedWork.next_step

    def until_the_power_fails(work: BalancedWork) -> WorkStep:
        if next(steps, None) is None:
            raise RuntimeError("power")
        return next_step(work)

    monkeypatch.setattr(BalancedWork, "next_step", until_the_power_fails)
    with pytest.raises(RuntimeError, match="power"):
        start(data, *tokens, f"run_dir={broken}")
    monkeypatch.undo()
    assert len(losses(broken)) == 4
    assert start(data, *tokens, f"run_dir={broken}") == 0
    assert [event["checkpoint"] for event in events(broken, "resume")] == ["step-00000003"]
    assert comparable(broken) == comparable(whole)
    mine, theirs = weights(broken), weights(whole)
    assert all(torch.equal(mine[name], weight) for name, weight in theirs.items())
    for name in ("router/balance_loss", "router/layer_00/load_max", "router/layer_01/entropy"):
        assert len(losses(whole, name)) == 6
    assert losses(whole)[-1] < losses(whole)[0]


def test_the_balance_evens_the_load(data: Path, tmp_path: Path) -> None:
    """Against the same run without it."""
    found = {}
    for coefficient in (0.0, 0.1):
        run = tmp_path / str(coefficient)
        tokens = (f"model.language.router_aux_loss_coef={coefficient}", "train.max_steps=30", f"run_dir={run}")
        assert start(data, *SUPERVISED, *MIXED, *EXPERTS, *tokens) == 0
        found[coefficient] = [
            sum(losses(run, f"router/{name}")[-5:]) / 5 for name in ("load_max", "entropy", "balance_loss")
        ]
    (busiest, entropy, loss), (unbalanced_busiest, unbalanced_entropy, unbalanced_loss) = found[0.1], found[0.0]
    assert busiest < unbalanced_busiest and entropy > unbalanced_entropy and loss < unbalanced_loss


def test_a_mixture_trains_in_bf16_as_in_fp32(data: Path, tmp_path: Path) -> None:
    """Under ZeRO 2, recomputed; bf16 rounds to 1 in 256, the losses are means of a few hundred tokens'."""
    tokens = ("train.max_steps=8", "engine.activation_checkpointing=true", "model.language.router_aux_loss_coef=0.1")
    found = {}
    for precision, stage in (("fp32", 0), ("bf16", 2)):
        run, kind = tmp_path / precision, (f"engine.precision={precision}", f"engine.zero_stage={stage}")
        assert start(data, *SUPERVISED, *MIXED, *EXPERTS, *tokens, *kind, f"run_dir={run}") == 0
        found[precision] = run
    for name, tolerance in (("loss", 0.02), ("router/balance_loss", 0.02), ("router/entropy", 0.02)):
        expected = losses(found["fp32"], name)
        assert losses(found["bf16"], name) == pytest.approx(expected, rel=tolerance), name


def test_a_policy_with_experts_is_the_one_that_answered(data: Path, trained: Path, tmp_path: Path) -> None:
    """The parity gate compares the generator's log-probs with the trainer's at every rollout batch."""
    parent, run = upcycled(trained, tmp_path / "parent"), tmp_path / "run"
    tokens = ("rl.parity.every=1", "rl.parity.tolerance=1.0e-4", "train.max_steps=2")
    assert start(data, *RL, *EXPERTS, *tokens, f"parent={parent}", f"run_dir={run}") == 0
    assert len(losses(run, "router/balance_loss")) == 2
    # some hundred roundings of fp32: experts meet other tokens beside them when a sample is packed
    assert max(losses(run, "parity/max")) < 1e-4
    assert any(grad_norm > 0 for grad_norm in losses(run, "grad_norm"))


def test_zero_3_gathers_a_layers_experts_together(data: Path) -> None:
    """Also of an architecture that DeepSpeed does not know by name."""
    from deepspeed.utils import get_z3_leaf_modules

    config = make_job(data, *SUPERVISED, *EXPERTS, "model.language.model_type=olmoe", "engine.zero_stage=3").config
    vlm = setup.make_model(config, setup.make_processor(config))
    engine = setup.make_engine(config, vlm, accumulation=1)
    leaves = get_z3_leaf_modules(engine.module)
    engine.close()
    assert [type(leaf).__name__ for leaf in leaves] == ["OlmoeSparseMoeBlock"] * 2


def test_the_log_says_what_computes(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_job(data, *SUPERVISED, *EXPERTS).config
    with caplog.at_level("INFO", logger="sail_train"):
        logging.getLogger("sail_train").propagate = True
        vlm = setup.make_model(config, setup.make_processor(config))
    assert "attention=sdpa" in caplog.text and "experts=grouped_mm" in caplog.text
    language = setup.model_shape(config, vlm).language
    assert (language.experts, language.active_experts, language.intermediate) == (4, 2, 48)
    assert language.weights > language.active_weights
