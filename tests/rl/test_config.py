"""RL configs refuse what cannot be meant."""

import pytest

from sail_train.rl.config import DynamicSamplingConfig, OverlongConfig, ParityConfig, PromptTypeConfig, RLConfig


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (RLConfig, {"prompts_per_step": 0}, "prompts_per_step=0"),
        (RLConfig, {"group_size": 1}, "group_size=1"),
        (RLConfig, {"mini_batches": 65}, "mini_batches=65"),
        (RLConfig, {"temperature": 0.0}, "temperature=0"),
        (RLConfig, {"think": "maybe"}, "rl.think='maybe'"),
        (RLConfig, {"loss_agg_mode": "mean"}, "token-mean"),
        (RLConfig, {"kl_coef": -1.0}, "kl_coef"),
        (RLConfig, {"max_new_tokens": 8, "overlong": OverlongConfig(enable=True, buffer=9)}, "lower it"),
        (OverlongConfig, {"enable": True}, "buffer=0"),
        (OverlongConfig, {"penalty": -1.0}, "penalty"),
        (DynamicSamplingConfig, {"max_batches": 0}, "max_batches"),
        (ParityConfig, {"tolerance": 0.0}, "tolerance"),
        (PromptTypeConfig, {"think": "maybe"}, "think='maybe'"),
        (PromptTypeConfig, {"group_size": 1}, "group_size=1"),
        (PromptTypeConfig, {"kl_coef": -1.0}, "kl_coef"),
    ],
)
def test_a_bad_value_is_refused(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_a_source_keeps_the_values_it_does_not_set():
    config = RLConfig(think="on", kl_coef=0.1, by_source={"a": PromptTypeConfig(kl_coef=0.0)})
    assert config.prompt_type("a") == PromptTypeConfig(think="on", group_size=8, kl_coef=0.0)
    assert config.prompt_type("b") == PromptTypeConfig(think="on", group_size=8, kl_coef=0.1)


def test_a_reference_is_needed_where_any_source_has_a_kl_term():
    assert not RLConfig().needs_reference
    assert RLConfig(kl_coef=0.1).needs_reference
    assert RLConfig(by_source={"a": PromptTypeConfig(kl_coef=0.1)}).needs_reference
