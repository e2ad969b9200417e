"""Numbers drawn by request, and the inverse CDF that turns them into tokens."""

import numpy as np
import torch

from sail_train.generate.sampling import log_distribution, pick, truncate, uniforms


def test_uniforms_are_keyed_by_seed_uid_and_copy():
    base = uniforms(1, "a", 0, 8)
    np.testing.assert_array_equal(base, uniforms(1, "a", 0, 8))
    np.testing.assert_array_equal(base, uniforms(1, "a", 0, 20)[:8])
    for other in (uniforms(2, "a", 0, 8), uniforms(1, "b", 0, 8), uniforms(1, "a", 1, 8)):
        assert not np.array_equal(base, other)
    assert ((base >= 0) & (base < 1)).all()


def test_pick_is_the_inverse_of_the_cumulative_distribution():
    logprobs = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log().expand(5, -1)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 1 - 2**-53], dtype=torch.float64)
    assert pick(logprobs, uniform).tolist() == [0, 0, 2, 2, 3]


def test_an_impossible_last_token_is_not_picked_by_the_largest_number():
    logprobs = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert pick(logprobs, torch.tensor([1 - 2**-53], dtype=torch.float64)).item() < 2


def test_temperature_scales_and_zero_leaves_the_distribution():
    logits = torch.tensor([[1.0, 3.0]])
    torch.testing.assert_close(log_distribution(logits, 2.0), torch.log_softmax(logits / 2, -1))
    torch.testing.assert_close(log_distribution(logits, 0.0), torch.log_softmax(logits, -1))


def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass():
    logprobs = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log()
    kept = truncate(logprobs, top_k=0, top_p=0.7).exp()
    torch.testing.assert_close(kept, torch.tensor([[0.0, 0.625, 0.375, 0.0]]))
    assert truncate(logprobs, top_k=0, top_p=0.01).exp().tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_top_k_keeps_the_likeliest():
    logprobs = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log()
    torch.testing.assert_close(truncate(logprobs, top_k=2, top_p=1.0).exp(), torch.tensor([[0.0, 0.625, 0.375, 0.0]]))


def test_an_impossible_first_token_is_not_picked_by_zero():
    logprobs = torch.tensor([[0.0, 0.5, 0.5]]).log()
    assert pick(logprobs, torch.zeros(1, dtype=torch.float64)).item() == 1
