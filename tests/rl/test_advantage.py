"""Advantages against their formulas, and groups that teach nothing."""

import math

import numpy as np
import pytest

from sail_train.rl.advantage import ADVANTAGES, advantages

REWARDS = [1.0, 0.0, 0.0, 0.1, 0.9]


def test_grpo_divides_by_the_unbiased_deviation():
    mean = sum(REWARDS) / 5
    std = math.sqrt(sum((r - mean) ** 2 for r in REWARDS) / 4)
    np.testing.assert_allclose(advantages("grpo", REWARDS), [(r - mean) / (std + 1e-6) for r in REWARDS], rtol=1e-12)


def test_dr_grpo_subtracts_the_mean_alone():
    np.testing.assert_allclose(advantages("dr_grpo", REWARDS), [r - 0.4 for r in REWARDS], rtol=1e-12)


def test_rloo_compares_with_the_mean_of_the_others():
    expected = [r - (sum(REWARDS) - r) / 4 for r in REWARDS]
    np.testing.assert_allclose(advantages("rloo", REWARDS), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_sum_to_zero(name):
    assert abs(sum(advantages(name, REWARDS))) < 1e-9


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("rewards", [[0.1] * 7, [0.9] * 3, [0.3], [None, 0.3], [None, None]])
def test_a_group_without_variance_gives_exactly_zero(name, rewards):
    assert advantages(name, rewards) == [0.0] * len(rewards)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_failed_reward_is_left_out_of_the_statistics(name):
    graded = advantages(name, [1.0, 0.0, 0.5])
    assert advantages(name, [1.0, None, 0.0, 0.5]) == [graded[0], 0.0, *graded[1:]]


def test_an_unknown_estimator_is_named_with_the_choices():
    with pytest.raises(ValueError, match="grpo"):
        advantages("gpro", REWARDS)
