"""Reward configs refuse what cannot be meant, and name the remedy."""

import pytest

from sail_train.rewards.config import JudgeConfig, RewardsConfig, VerifierConfig


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (RewardsConfig, {"parts": {"answer": 0.5, "format": 0.1}}, "sums to 0.6"),
        (RewardsConfig, {"parts": {"anwser": 1.0}}, "unknown part 'anwser'"),
        (RewardsConfig, {"parts": {"answer": 1.5, "format": -0.5}}, "negative"),
        (RewardsConfig, {"parts_by_source": {"x": {"answer": 0.5}}}, "parts_by_source.x"),
        (RewardsConfig, {"parts": {"answer": 0.5, "think": 0.5}}, "judge.url is empty"),
        (JudgeConfig, {"timeout": 0}, "timeout"),
        (JudgeConfig, {"max_fail_rate": 2}, "max_fail_rate"),
        (JudgeConfig, {"max_retries": -1}, "max_retries"),
        (JudgeConfig, {"concurrency": 0}, "concurrency"),
        (JudgeConfig, {"api_key_env": "sk-12345"}, "NAME of an environment variable"),
        (VerifierConfig, {"workers": 0}, "workers"),
        (VerifierConfig, {"timeout": 0}, "timeout"),
        (VerifierConfig, {"box_iou": 0}, "box_iou"),
        (VerifierConfig, {"max_fail_rate": -1}, "max_fail_rate"),
    ],
)
def test_a_bad_value_is_refused(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_a_key_is_not_repeated_in_the_message():
    with pytest.raises(ValueError) as error:
        JudgeConfig(api_key_env="sk-12345")
    assert "sk-12345" not in str(error.value)


def test_weights_of_a_source_replace_the_others():
    config = RewardsConfig(parts_by_source={"a": {"answer": 1.0, "format": 0.0}})
    assert config.weights("a") == {"answer": 1.0}
    assert config.weights("b") == {"answer": 0.9, "format": 0.1}
