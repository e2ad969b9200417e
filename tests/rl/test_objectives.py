"""Objectives against their formulas in float64, values and gradients, and the split into micro batches."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sail_train.model.packed import PackedLM
from sail_train.rl.batch import empty_batch, pack
from sail_train.rl.config import RLConfig
from sail_train.rl.objectives import OBJECTIVES
from sail_train.rl.objectives.objective import Objective, add_reference, k3
from sail_train.rl.objectives.surrogate import Clip, clipped_surrogate

PATCH_DIM = 48


class Fixed(nn.Module):
    """A policy that is its log-probs: (N,) float64 with gradient, whatever the batch."""

    def __init__(self, logprobs, entropy=None):
        super().__init__()
        self.logprobs = nn.Parameter(logprobs.double())

    def forward(self, *_, temperature, entropy):
        return self.logprobs, torch.ones_like(self.logprobs) if entropy else None


def packed(rollouts, tokens=10_000, **options):
    return pack(rollouts, micro_batch_tokens=tokens, patch_dim=PATCH_DIM, pad_token_id=0, **options)


def doubled(batch):
    names = ("advantages", "old_logprobs", "kl_coef")
    values = {name: getattr(batch, name).double() for name in names}
    ref = None if batch.ref_logprobs is None else batch.ref_logprobs.double()
    return replace(batch, ref_logprobs=ref, **values)


@pytest.fixture
def problem(make_rollout):
    """(batch, module, delta): two responses of 5 and 3 tokens, log-probs moved away from the old ones."""
    batch = doubled(packed([make_rollout(0, 5, 1.5), make_rollout(1, 3, -0.7)])[0])
    delta = torch.tensor([0.0, 0.3, -0.5, 0.1, 2.0, 1.5, -0.4, 0.05], dtype=torch.float64)
    return batch, Fixed(batch.old_logprobs + delta), delta


def run(objective, module, batch):
    module.zero_grad()
    loss, sums = objective.loss(module, batch)
    loss.backward()
    return loss.item(), module.logprobs.grad, sums


def test_dapo_is_the_dual_clipped_surrogate(problem):
    batch, module, delta = problem
    objective = Objective(RLConfig())
    loss, grad, sums = run(objective, module, batch)
    expected, gradient, clipped = [], [], 0
    for a, d in zip(batch.advantages.tolist(), delta.tolist(), strict=True):
        r = math.exp(d)
        bounded = min(max(r, 0.8), 1.28)
        value, slope = max(-a * r, -a * bounded), (-a * r if -a * r >= -a * bounded else 0.0)
        clipped += -a * bounded > -a * r
        if a < 0 and value > -a * 3:
            value, slope, clipped = -a * 3, 0.0, clipped + 1
        expected.append(value)
        gradient.append(slope)
    assert loss == pytest.approx(sum(expected), abs=1e-6)
    torch.testing.assert_close(grad, torch.tensor(gradient, dtype=torch.float64), atol=1e-6, rtol=0)
    assert clipped == int(sums["clipped"]) == 4  # two above, one below, one by the dual clip
    assert sums["tokens"] == 8


def test_at_the_old_policy_every_objective_has_the_gradient_of_reinforce(problem):
    batch, module, delta = problem
    with torch.no_grad():
        module.logprobs.copy_(batch.old_logprobs)
    for name in OBJECTIVES:
        _, grad, sums = run(Objective(RLConfig(objective=name, loss_agg_mode="token-mean")), module, batch)
        torch.testing.assert_close(grad, -batch.advantages, atol=1e-6, rtol=0)
        assert int(sums["clipped"]) == 0


def test_gspo_has_the_gradient_of_the_sequence_ratio(problem):
    batch, module, delta = problem
    objective = Objective(RLConfig(objective="gspo", clip_ratio_low=0.9, clip_ratio_high=9.0))
    loss, grad, _ = run(objective, module, batch)
    first, second = delta[:5].mean().exp().item(), delta[5:].mean().exp().item()
    assert loss == pytest.approx(-first * 1.5 - second * -0.7, abs=1e-6)
    expected = torch.tensor([-first * 1.5 / 5] * 5 + [second * 0.7 / 3] * 3, dtype=torch.float64)
    torch.testing.assert_close(grad, expected, atol=1e-6, rtol=0)


def test_gspo_clips_whole_responses(problem):
    batch, module, delta = problem
    _, grad, sums = run(Objective(RLConfig(objective="gspo")), module, batch)
    assert delta[:5].mean() > 4e-4  # moved up where the advantage is positive: held
    assert (grad[:5] == 0).all() and (grad[5:] != 0).all()
    assert int(sums["clipped"]) == 5


def test_cispo_keeps_the_gradient_of_every_token_under_a_capped_weight(problem):
    batch, module, delta = problem
    objective = Objective(RLConfig(objective="cispo", clip_ratio_high=1.0))
    loss, grad, _ = run(objective, module, batch)
    weight = delta.exp().clamp(max=2.0)
    torch.testing.assert_close(grad, -weight * batch.advantages, atol=1e-6, rtol=0)
    assert loss == pytest.approx((-weight * batch.advantages * module.logprobs).sum().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "weights", "denominator"),
    [
        ("token-mean", [1.0] * 8, 8),
        ("seq-mean-token-sum", [1.0] * 8, 2),
        ("seq-mean-token-mean", [1 / 5] * 5 + [1 / 3] * 3, 2),
        ("seq-mean-token-sum-norm", [1.0] * 8, 2 * 64),
    ],
)
def test_aggregations_weigh_tokens_and_sequences(make_rollout, mode, weights, denominator):
    rollouts = [make_rollout(0, 5, 1.0), make_rollout(1, 3, -2.0), make_rollout(2, 9, 1.0, masked=True)]
    batch = doubled(packed(rollouts)[0])
    objective = Objective(RLConfig(loss_agg_mode=mode, max_new_tokens=64))
    _, grad, _ = run(objective, Fixed(batch.old_logprobs), batch)
    torch.testing.assert_close(grad, -batch.advantages * torch.tensor(weights, dtype=torch.float64), rtol=1e-6, atol=0)
    assert objective.denominator(rollouts) == denominator


def test_k3_is_never_negative_and_unbiased_on_policy():
    torch.manual_seed(0)
    logits, ref = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    p, q = logits.softmax(-1), ref.softmax(-1)
    values = k3(p.log(), q.log())
    assert (values >= 0).all()
    assert (p * values).sum().item() == pytest.approx((p * (p.log() - q.log())).sum().item(), abs=1e-12)


def test_the_kl_term_pulls_towards_the_reference(make_rollout):
    rollouts = [make_rollout(0, 4, 0.0, kl_coef=0.1), make_rollout(1, 3, 0.0, kl_coef=0.1)]
    batch = packed(rollouts)[0]
    batch = doubled(add_reference([batch], Fixed32(batch.old_logprobs - 0.5), temperature=1.0)[0])
    objective = Objective(RLConfig(kl_coef=0.1))
    loss, grad, sums = run(objective, Fixed(batch.old_logprobs), batch)
    assert loss == pytest.approx(0.1 * 7 * (math.exp(-0.5) + 0.5 - 1), rel=1e-5)
    slope = torch.full((7,), 0.1 * (1 - math.exp(-0.5)), dtype=torch.float64)
    torch.testing.assert_close(grad, slope, rtol=1e-5, atol=0)
    assert float(sums["kl_ref"]) > 0


class Fixed32(Fixed):
    def forward(self, *_, temperature, entropy):
        return self.logprobs.float(), None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_ratios_stay_finite(make_rollout, name):
    batch = doubled(packed([make_rollout(0, 2, 1.0), make_rollout(1, 2, -1.0)])[0])
    module = Fixed(batch.old_logprobs + torch.tensor([500.0, -500.0, 500.0, -500.0]))
    loss, grad, _ = run(Objective(RLConfig(objective=name)), module, batch)
    assert math.isfinite(loss) and torch.isfinite(grad).all()


def test_dual_clip_can_be_switched_off():
    ratio, advantage = torch.tensor([50.0]), torch.tensor([-1.0])
    assert clipped_surrogate(ratio, advantage, Clip(low=0.2, high=0.2)).values.item() == 50.0
    assert clipped_surrogate(ratio, advantage, Clip(low=0.2, high=0.2, c=3.0)).values.item() == 3.0


def test_bounds_default_to_the_objectives_own_and_the_config_goes_before():
    assert Objective(RLConfig()).clip == Clip(low=0.2, high=0.28, c=3.0, loss_agg_mode="token-mean")
    assert Objective(RLConfig(objective="gspo")).clip.loss_agg_mode == "seq-mean-token-mean"
    given = RLConfig(clip_ratio_low=0.1, clip_ratio_high=0.5, clip_ratio_c=0, loss_agg_mode="seq-mean-token-sum")
    assert Objective(given).clip == Clip(low=0.1, high=0.5, c=0, loss_agg_mode="seq-mean-token-sum")


def test_an_unknown_objective_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'dapo'"):
        Objective(RLConfig(objective="dapoo"))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_the_gradient_does_not_depend_on_the_split_into_micro_batches(model, make_rollout, name, mode):
    rollouts = [make_rollout(i, 3 + 2 * i, (-1) ** i * (1.0 + i), prompt=3 + i) for i in range(6)]
    objective = Objective(RLConfig(objective=name, loss_agg_mode=mode, clip_ratio_low=0.9, clip_ratio_high=9.0))
    grads = []
    for tokens in (1, 30, 10_000):
        module = PackedLM(model)
        module.zero_grad()
        batches = packed(rollouts, tokens, at_least=7)
        assert len(batches) >= 7 or tokens > 30
        for batch in batches:
            loss, _ = objective.loss(module, batch)
            (loss / objective.denominator(rollouts)).backward()
        grads.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
    for other in grads[1:]:
        assert other.keys() == grads[0].keys()
        for parameter, grad in other.items():
            torch.testing.assert_close(grad, grads[0][parameter], atol=2e-5, rtol=1e-4)


def test_groups_without_variance_have_exactly_no_gradient(model, make_rollout):
    rollouts = [make_rollout(i, 4, 0.0) for i in range(3)]
    module = PackedLM(model)
    (batch,) = packed(rollouts)
    objective = Objective(RLConfig())
    loss, _ = objective.loss(module, batch)
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())
    assert objective.denominator(rollouts) == 12  # they still count


def test_an_empty_micro_batch_calls_every_module_and_trains_nothing(model):
    module = PackedLM(model)
    loss, sums = Objective(RLConfig(kl_coef=0.1)).loss(module, empty_batch(PATCH_DIM, 0))
    loss.backward()
    assert loss.item() == 0 and sums["tokens"] == 0
    missing = [name for name, p in module.named_parameters() if p.grad is None]
    assert not missing and not any(p.grad.any() for p in module.parameters())
