"""The mixed reward: weights, gate, and that a failed part fails the whole."""

import pytest

from sail_train.rewards.config import JudgeConfig, RewardsConfig, VerifierConfig
from sail_train.rewards.mix import Rewards, RewardsFailed, Sample

MIXED = {"answer": 0.7, "think": 0.2, "format": 0.1}


def sample(response, *, answer="9", verifier="number", source="rl", mode="on", finish_reason="stop"):
    return Sample(
        source=source,
        question="What is the sum?",
        response=response,
        finish_reason=finish_reason,
        mode=mode,
        answer=answer,
        verifier=verifier,
        reference="task: sum\ncells: 351",
    )


def respond(thought, answer):
    return f"<think>\n{thought}\n</think>\n\n\\boxed{{{answer}}}"


def test_parts_are_weighed():
    with Rewards(RewardsConfig()) as rewards:
        right, wrong, formless = rewards.score(
            [sample(respond("x", 9)), sample(respond("x", 8)), sample("<think>x</think>9")]
        )
    assert right.total.value == pytest.approx(1.0) and right.correct
    assert wrong.total.value == pytest.approx(0.1) and not wrong.correct
    assert formless.total.value == pytest.approx(0.9) and formless.correct


def test_the_judge_grades_the_thought_where_it_has_a_weight():
    config = RewardsConfig(parts=MIXED, parts_by_source={"plain": {"answer": 1.0}}, judge=JudgeConfig(url="embedded"))
    with Rewards(config) as rewards:
        good, bad, none, plain = rewards.score(
            [
                sample(respond("351; 03 08 09", 9)),
                sample(respond("hm", 9)),
                sample(respond("", 9)),
                sample(respond("hm", 9), source="plain"),
            ]
        )
    assert good.total.value == pytest.approx(1.0)
    assert bad.total.value == pytest.approx(0.8)
    assert none.total.value == pytest.approx(0.7) and none.parts["think"].detail == "nothing to judge"
    assert "think" not in plain.parts and plain.total.value == pytest.approx(1.0)


def test_a_gate_gives_nothing_for_the_wrong_form_and_asks_no_judge():
    config = RewardsConfig(parts=MIXED, format_gate=True, judge=JudgeConfig(url="embedded"))
    with Rewards(config) as rewards:
        reward = rewards.score([sample("<think>351; 03 08 09</think>9")])[0]
    assert reward.total.value == 0.0 and reward.correct
    assert reward.parts["think"].detail == "nothing to judge"


def test_a_failed_part_fails_the_reward():
    config = RewardsConfig(verifier=VerifierConfig(max_fail_rate=1.0))
    with Rewards(config) as rewards:
        reward = rewards.score([sample(respond("x", 9), answer="nine")])[0]
    assert reward.total.failed and not reward.correct and "not one number" in reward.total.detail


def test_too_many_failures_stop_the_run():
    with Rewards(RewardsConfig()) as rewards:
        rewards.score([sample(respond("x", 9))] * 96)
        rewards.score([sample(respond("x", 9), answer="nine")] * 8)
        with pytest.raises(RewardsFailed, match="verifier.*max_fail_rate.*not one number"):
            rewards.score([sample(respond("x", 9), answer="nine")] * 8)


def test_a_judge_that_dies_stops_the_run():
    config = RewardsConfig(parts=MIXED, judge=JudgeConfig(url="embedded", max_retries=0, backoff=0.01))
    with Rewards(config) as rewards:
        rewards.score([sample(respond("351; 03 08 09", 9))])
        rewards.stack.close()
        rewards.judge.client = type(rewards.judge.client)()
        with pytest.raises(RewardsFailed, match="judge"):
            rewards.score([sample(respond("351; 03 08 09", 9))] * 5)


def test_a_judge_that_is_not_there_is_named_at_the_start():
    judge = JudgeConfig(url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(ValueError, match="does not answer"):
        Rewards(RewardsConfig(parts=MIXED, judge=judge))
