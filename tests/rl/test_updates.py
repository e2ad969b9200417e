"""Updates: as many on every rank, with the denominator of all."""

from types import SimpleNamespace

import pytest
import torch

from sail_train.model.packed import PackedLM
from sail_train.rl import updates as updates_module
from sail_train.rl.config import RLConfig
from sail_train.rl.objectives.objective import Objective
from sail_train.rl.updates import make_updates

PATCH_DIM = 48


def make(mini_batches, config, **options):
    return make_updates(mini_batches, Objective(config), config, patch_dim=PATCH_DIM, pad_token_id=0, **options)


def test_each_mini_batch_is_one_update_per_epoch(make_rollout):
    first, second = [make_rollout(0, 5, 1.0), make_rollout(1, 3, -1.0)], [make_rollout(2, 4, 1.0)]
    updates = make([first, second], RLConfig(epochs=2))
    assert [update.denominator for update in updates] == [8, 4, 8, 4]
    assert updates[0].batches[0].keys == updates[2].batches[0].keys == ("k0", "k1")


def test_ranks_agree_on_micro_batches_and_denominator(make_rollout, monkeypatch):
    other = [[3, 20.0], [1, 0.0], [1, 0.0]]
    monkeypatch.setattr(updates_module, "dist", SimpleNamespace(gather_objects=lambda mine: [mine, other]))
    masked = [make_rollout(1, 3, 1.0, masked=True)]
    updates = make([[make_rollout(0, 5, 1.0)], masked, []], RLConfig())
    assert len(updates) == 1  # the others train nothing on any rank
    assert updates[0].denominator == 25.0
    assert [len(batch.advantages) for batch in updates[0].batches] == [5, 0, 0]


def test_the_reference_goes_into_every_micro_batch(model, make_rollout):
    config = RLConfig(kl_coef=0.1, micro_batch_tokens=10)
    rollouts = [make_rollout(i, 5, 0.0, kl_coef=0.1) for i in range(3)]
    (update,) = make([rollouts], config, reference=PackedLM(model))
    assert len(update.batches) == 3
    for batch in update.batches:
        assert batch.ref_logprobs is not None and not batch.ref_logprobs.requires_grad
        loss, sums = Objective(config).loss(PackedLM(model), batch)
        assert float(sums["kl_ref"]) == pytest.approx(0.0, abs=1e-6)  # the policy still is its reference
        assert torch.isfinite(loss)


def test_a_kl_term_without_reference_is_refused(make_rollout):
    with pytest.raises(ValueError, match="no reference policy"):
        make([[make_rollout(0, 3, 1.0)]], RLConfig(kl_coef=0.1))
