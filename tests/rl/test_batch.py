"""Packing: what is trained, where its labels stand, and what shares a micro batch."""

import numpy as np
import torch

from sail_train.rl.batch import pack
from sail_train.types import IGNORE_INDEX

PATCH_DIM = 48


def packed(rollouts, tokens=10_000, **options):
    return pack(rollouts, micro_batch_tokens=tokens, patch_dim=PATCH_DIM, pad_token_id=0, **options)


def test_labels_are_the_response_and_nothing_else(make_rollout):
    rollouts = [make_rollout(0, 5, 1.0, prompt=4), make_rollout(1, 2, -1.0, prompt=7)]
    (batch,) = packed(rollouts)
    bounds = batch.cu_seqlens.tolist()
    seen = 0
    for start, end, key in zip(bounds, bounds[1:], batch.keys, strict=False):
        rollout = next(r for r in rollouts if r.ask.conversation.key == key)
        prompt, response = rollout.ask.prompt.input_ids.tolist(), list(rollout.completion.token_ids)
        ids, labels = batch.input_ids[start:end].tolist(), batch.labels[start:end].tolist()
        assert ids == prompt + response[:-1]
        assert labels == [IGNORE_INDEX] * (len(prompt) - 1) + response
        assert batch.position_ids[start:end].tolist() == list(range(len(ids)))
        for t, label in enumerate(labels):
            if label != IGNORE_INDEX and t + 1 < len(ids):
                assert ids[t + 1] == label
        mine = slice(seen, seen + len(response))
        assert (batch.advantages[mine] == rollout.advantage).all()
        np.testing.assert_allclose(batch.old_logprobs[mine], rollout.completion.logprobs, rtol=1e-6)
        assert (batch.sequence[mine] == batch.keys.index(key)).all()
        seen += len(response)
    assert seen == int((batch.labels != IGNORE_INDEX).sum()) == len(batch.advantages)
    assert batch.lengths.tolist() == [5, 2] if batch.keys[0] == "k0" else [2, 5]


def test_micro_batches_keep_to_the_budget_and_lose_nothing(make_rollout):
    rollouts = [make_rollout(i, 2 + i, 1.0) for i in range(12)]
    batches = packed(rollouts, 24)
    assert all(len(batch.input_ids) <= 24 for batch in batches)
    assert sorted(key for batch in batches for key in batch.keys) == sorted(r.ask.conversation.key for r in rollouts)
    assert len(batches) < 8
    again = packed(rollouts, 24)
    assert [batch.keys for batch in again] == [batch.keys for batch in batches]


def test_a_sequence_over_the_budget_has_a_micro_batch_of_its_own(make_rollout):
    batches = packed([make_rollout(0, 50, 1.0), make_rollout(1, 3, 1.0), make_rollout(2, 3, 1.0)], 20)
    assert [len(batch.keys) for batch in batches] == [1, 2]


def test_what_has_no_gradient_is_not_computed(make_rollout):
    rollouts = [
        make_rollout(0, 3, 1.0),
        make_rollout(1, 3, 0.0),
        make_rollout(2, 3, 0.0, kl_coef=0.1),
        make_rollout(3, 3, 1.0, masked=True),
    ]
    (batch,) = packed(rollouts)
    assert set(batch.keys) == {"k0", "k2"}
    assert (batch.kl_coef[batch.sequence == batch.keys.index("k2")] == np.float32(0.1)).all()


def test_ranks_with_fewer_micro_batches_get_empty_ones(make_rollout):
    batches = packed([make_rollout(0, 3, 1.0)], at_least=3)
    assert [int((batch.labels != IGNORE_INDEX).sum()) for batch in batches] == [3, 0, 0]
    assert len(packed([])) == 1


def test_a_batch_moves_with_all_its_tensors(make_rollout):
    (batch,) = packed([make_rollout(0, 3, 1.0)])
    moved = batch.to(torch.device("meta"))
    assert type(moved) is type(batch)
    assert moved.advantages.device.type == moved.input_ids.device.type == moved.lengths.device.type == "meta"
    assert moved.ref_logprobs is None and moved.keys == batch.keys
