"""One rollout batch: which groups are kept, what they weigh, and that ranks change nothing."""

import json
import threading
from types import SimpleNamespace

import pytest

from sail_train.processor import STYLES
from sail_train.rewards.config import RewardsConfig, VerifierConfig
from sail_train.rewards.mix import Rewards
from sail_train.rl import groups as groups_module
from sail_train.rl import metrics as metrics_module
from sail_train.rl.config import DynamicSamplingConfig, OverlongConfig, PromptTypeConfig, RLConfig
from sail_train.rl.groups import NothingToLearn, PromptsExhausted, Roller, overlong_penalty
from sail_train.types import RunStopped

RIGHT, WRONG = "<think>\n3\n</think>\n\n\\boxed{9}", "<think>\n3\n</think>\n\n\\boxed{8}"


def make_config(**options):
    defaults = {"prompts_per_step": 4, "group_size": 4, "max_new_tokens": 64, "think": "on"}
    return RLConfig(**{**defaults, **options})


@pytest.fixture
def roll(processor, make_conversation, scripted):
    """(script, **config) -> the first rollout batch, with its engine."""

    def run(script, *, number=0, rewards=None, conversations=None, **options):
        engine = scripted(script)
        with Rewards(rewards or RewardsConfig()) as graders:
            roller = Roller(
                make_config(**options),
                processor=processor,
                engine=engine,
                rewards=graders,
                prompts=iter(conversations or [make_conversation(i) for i in range(64)]),
                seed=0,
            )
            return roller.roll(number), engine

    return run


def order(uid):
    return int(uid.split("/")[1])


def mixed(uid, copy):
    return RIGHT if copy % 2 else WRONG


def every_third(uid, copy):
    """Prompt 0, 3, 6 ... of a rollout batch have mixed groups, the others are all right or all wrong."""
    if order(uid) % 3 == 0:
        return mixed(uid, copy)
    return RIGHT if order(uid) % 3 == 1 else WRONG


def kept_orders(batch):
    return sorted({r.ask.order for r in batch.rollouts if r.kept})


def test_one_round_is_enough_where_every_group_is_mixed(roll):
    batch, engine = roll(mixed)
    assert engine.calls == [(4, 4)]
    assert kept_orders(batch) == [0, 1, 2, 3]
    assert batch.metrics["rollout/answer"] == 0.5
    assert batch.metrics["rollout/reward"] == pytest.approx(0.55)
    assert batch.metrics["rl/answer"] == 0.5
    assert batch.metrics["rollout/rounds"] == 1


def test_prompts_are_asked_until_the_step_is_full_and_the_rest_is_trimmed(roll):
    batch, engine = roll(every_third)
    assert engine.calls == [(4, 4)] * 3  # 12 prompts, mixed: 0, 3, 6, 9
    assert kept_orders(batch) == [0, 3, 6, 9]
    batch, engine = roll(lambda uid, copy: mixed(uid, copy) if order(uid) not in (0, 1) else RIGHT)
    assert kept_orders(batch) == [2, 3, 4, 5]
    assert len(batch.rollouts) == 8 * 4  # dropped ones are still shown
    assert batch.metrics["rollout/all_right"] == 0.25
    assert batch.metrics["rollout/kept"] == 0.5


def test_too_few_groups_train_after_the_last_round_with_a_warning(roll, caplog):
    batch, engine = roll(every_third, dynamic_sampling=DynamicSamplingConfig(max_batches=2), mini_batches=4)
    assert kept_orders(batch) == [0, 3, 6]
    assert "3 groups instead of 4 after 2 rounds" in caplog.text
    assert [len(mini) for mini in batch.mini_batches] == [4, 4, 4]


def test_nothing_to_learn_from_says_what_to_change(roll):
    with pytest.raises(NothingToLearn, match="100% all wrong.*rl.group_size"):
        roll(lambda uid, copy: WRONG)


def test_without_dynamic_sampling_every_group_is_kept(roll):
    batch, engine = roll(every_third, dynamic_sampling=DynamicSamplingConfig(enable=False))
    assert engine.calls == [(4, 4)]
    assert kept_orders(batch) == [0, 1, 2, 3]
    assert {r.advantage for r in batch.rollouts if r.ask.order in (1, 2)} == {0.0}


def test_groups_are_judged_by_the_verifier_and_not_by_the_summed_reward(roll):
    """All answers are wrong and only the form varies: rewards have variance, yet there is nothing to learn."""
    with pytest.raises(NothingToLearn):
        roll(lambda uid, copy: WRONG if copy % 2 else "\\boxed{8}")


def test_mini_batches_get_whole_groups_in_turn(roll):
    batch, _ = roll(mixed, mini_batches=2)
    assert [sorted({r.ask.order for r in mini}) for mini in batch.mini_batches] == [[0, 2], [1, 3]]
    assert all(len(mini) == 8 for mini in batch.mini_batches)


def test_a_reward_that_failed_is_masked_and_leaves_the_statistics(roll, monkeypatch, make_conversation):
    conversations = [make_conversation(i, answer="9" if i != 1 else "nine") for i in range(8)]
    rewards = RewardsConfig(verifier=VerifierConfig(max_fail_rate=1.0))
    batch, _ = roll(mixed, rewards=rewards, conversations=conversations)
    failed = [r for r in batch.rollouts if r.ask.conversation.key == "k1"]
    assert all(r.masked and r.shaped is None and r.advantage == 0 and not r.kept for r in failed)
    assert batch.metrics["rollout/failed"] == 4 / 32
    assert failed[0].to_record()["reward"] is None


def test_sources_have_their_own_group_size_think_mode_and_kl(roll, make_conversation):
    conversations = [make_conversation(i, source="a" if i % 2 else "b") for i in range(8)]
    batch, engine = roll(
        mixed, conversations=conversations, by_source={"a": PromptTypeConfig(group_size=2, think="off", kl_coef=0.5)}
    )
    assert sorted(engine.calls) == [(2, 2), (2, 4)]
    for rollout in batch.rollouts:
        own = rollout.ask.conversation.source == "a"
        assert rollout.ask.kind.kl_coef == (0.5 if own else 0.0)
        assert rollout.ask.mode == ("off" if own else "on")
        assert rollout.reward.parts["format"].value == (0.0 if own else 1.0)  # a thought where none was asked for


def test_a_forced_opening_is_graded_with_the_response(roll, processor):
    batch, _ = roll(lambda uid, copy: mixed(uid, copy).removeprefix("<think>\n"), force_think=True)
    assert batch.metrics["rollout/format"] == 1.0
    rollout = batch.rollouts[0]
    assert rollout.response == WRONG
    text = processor.tokenizer.decode(rollout.ask.prompt.input_ids)
    assert text.endswith("<think>\n")


def test_forced_openings_are_those_that_the_processor_writes(processor, make_conversation):
    for mode in ("on", "off", "auto"):
        opening = processor.opening(mode)
        plain = processor.prompt(make_conversation(0), uid="x", think=mode).input_ids
        forced = processor.prompt(make_conversation(0), uid="x", think=mode, force=True).input_ids
        assert processor.tokenizer.decode(forced[len(plain) :]) == opening


def test_a_direct_answers_form_is_that_of_the_chat_style(roll, processor, monkeypatch):
    batch, _ = roll(lambda uid, copy: "\\boxed{9}" if copy % 2 else "\\boxed{8}", think="off")
    assert batch.metrics["rollout/format"] == 0.0
    monkeypatch.setattr(processor, "style", STYLES["sail_vl2"])
    batch, _ = roll(lambda uid, copy: "\\boxed{9}" if copy % 2 else "\\boxed{8}", think="off", force_think=True)
    assert batch.metrics["rollout/format"] == 1.0
    assert {r.response for r in batch.rollouts} == {"\\boxed{9}", "\\boxed{8}"}


def test_the_blind_control_sees_grey_in_the_rollout_and_in_training(roll):
    batch, _ = roll(mixed, blank_images=True)
    assert all((r.ask.prompt.patches == 128).all() and r.ask.prompt.patches.size for r in batch.rollouts)
    seeing, _ = roll(mixed)
    assert any((r.ask.prompt.patches != 128).any() for r in seeing.rollouts)


@pytest.mark.parametrize(("length", "penalty"), [(0, 0.0), (80, 0.0), (90, -0.5), (100, -1.0)])
def test_the_overlong_penalty_grows_over_the_buffer(length, penalty):
    config = OverlongConfig(enable=True, buffer=20)
    assert overlong_penalty(length, 100, config) == pytest.approx(penalty)
    assert overlong_penalty(length, 100, OverlongConfig()) == 0.0
    assert overlong_penalty(length, 100, OverlongConfig(enable=True, buffer=20, penalty=0.3)) == pytest.approx(
        0.3 * penalty
    )


def test_long_responses_are_compared_with_their_penalty(roll, processor):
    length = len(processor.tokenizer.encode(RIGHT)) + 1
    overlong = OverlongConfig(enable=True, buffer=length + 7)
    batch, _ = roll(mixed, overlong=overlong, max_new_tokens=length + 7)
    rollout = next(r for r in batch.rollouts if r.reward.correct)
    assert rollout.shaped == pytest.approx(1.0 - length / (length + 7))
    assert rollout.reward.total.value == pytest.approx(1.0)


def test_cut_off_responses_can_be_masked(roll, processor):
    limit = len(processor.tokenizer.encode(RIGHT)) + 1

    def script(uid, copy):
        return mixed(uid, copy) if copy < 3 else WRONG + " and so on" * 5

    kept, _ = roll(script, max_new_tokens=limit)
    masked, _ = roll(script, max_new_tokens=limit, mask_truncated=True)
    assert not any(r.masked for r in kept.rollouts)
    assert [r.masked for r in masked.rollouts] == [r.completion.finish_reason == "length" for r in masked.rollouts]
    assert any(r.masked for r in masked.rollouts)
    assert [r.advantage for r in masked.rollouts] == [r.advantage for r in kept.rollouts]


def test_rollout_batches_are_numbered_in_their_uids(roll):
    batch, _ = roll(mixed, number=7)
    assert {r.ask.prompt.uid for r in batch.rollouts} == {"7/0", "7/1", "7/2", "7/3"}


def test_records_are_json_with_all_that_a_reader_asks_for(roll):
    batch, _ = roll(mixed)
    record = json.loads(json.dumps(batch.rollouts[1].to_record()))
    assert record["response"] == RIGHT and record["prompt"] == "What is the sum of the digits? 0"
    assert record["parts"]["answer"] == {"value": 1.0, "status": "ok", "detail": ""}
    assert record["advantage"] > 0 and record["reward"] == pytest.approx(1.0)
    assert (record["source"], record["key"], record["truth"], record["finish_reason"]) == ("rl", "k0", "9", "stop")


def test_a_sample_without_truth_is_refused(roll, make_conversation):
    with pytest.raises(ValueError, match="'k0'.*no answer"):
        roll(mixed, conversations=[make_conversation(i, answer=None) for i in range(8)])


class Ranks:
    """`dist` for threads that play the ranks."""

    def __init__(self, world):
        self.world, self.local = world, threading.local()
        self.barrier, self.values = threading.Barrier(world, timeout=60), [None] * world

    def gather_objects(self, value):
        self.values[self.local.rank] = json.dumps(value)
        self.barrier.wait()
        result = [json.loads(each) for each in self.values]
        self.barrier.wait()
        return result

    def as_dist(self):
        return SimpleNamespace(
            world_size=lambda: self.world, rank=lambda: self.local.rank, gather_objects=self.gather_objects
        )


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_change_neither_prompts_nor_groups_nor_mini_batches(
    monkeypatch, processor, make_conversation, scripted, roll, world
):
    alone, _ = roll(every_third, mini_batches=2)
    ranks = Ranks(world)
    monkeypatch.setattr(groups_module, "dist", ranks.as_dist())
    monkeypatch.setattr(metrics_module, "dist", ranks.as_dist())
    results = [None] * world

    def play(rank):
        ranks.local.rank = rank
        prompts = [make_conversation(i) for i in range(64)][rank::world]
        with Rewards(RewardsConfig()) as rewards:
            roller = Roller(
                make_config(mini_batches=2),
                processor=processor,
                engine=scripted(every_third),
                rewards=rewards,
                prompts=iter(prompts),
                seed=0,
            )
            results[rank] = roller.roll(0)

    threads = [threading.Thread(target=play, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def told(rollouts):
        return sorted((r.ask.order, r.ask.conversation.key, r.response, r.advantage, r.kept) for r in rollouts)

    assert told(r for result in results for r in result.rollouts) == told(alone.rollouts)
    for number, mini in enumerate(alone.mini_batches):
        assert told(r for result in results for r in result.mini_batches[number]) == told(mini)
    for result in results:
        assert result.metrics == pytest.approx(alone.metrics)


@pytest.mark.parametrize("first", [8, 5, 3])
def test_prompts_that_end_on_one_rank_end_on_all_before_any_generates(
    monkeypatch, processor, make_conversation, scripted, first
):
    """The second rank has prompts for all rounds, the first for four, two or one of them."""
    ranks, raised, engines = Ranks(2), [None, None], [scripted(lambda uid, copy: RIGHT) for _ in range(2)]
    monkeypatch.setattr(groups_module, "dist", ranks.as_dist())
    monkeypatch.setattr(metrics_module, "dist", ranks.as_dist())

    def play(rank):
        ranks.local.rank = rank
        prompts = [make_conversation(i) for i in range((first, 64)[rank])]
        config = make_config(dynamic_sampling=DynamicSamplingConfig(max_batches=9))
        parts = {"processor": processor, "engine": engines[rank], "prompts": iter(prompts)}
        with (
            Rewards(RewardsConfig()) as rewards,
            pytest.raises(PromptsExhausted, match="ask for fewer prompts .* mend the bad samples") as info,
        ):
            Roller(config, rewards=rewards, seed=0, **parts).roll(0)
        raised[rank] = info.type

    threads = [threading.Thread(target=play, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == [PromptsExhausted] * 2 and issubclass(PromptsExhausted, RunStopped)
    assert [len(engine.calls) for engine in engines] == [first // 2] * 2


def test_a_batch_that_ranks_cannot_share_is_refused(monkeypatch, processor, scripted):
    ranks = Ranks(3)
    ranks.local.rank = 0
    monkeypatch.setattr(groups_module, "dist", ranks.as_dist())
    with pytest.raises(ValueError, match="multiple of the 3 ranks"):
        Roller(make_config(), processor=processor, engine=scripted(mixed), rewards=None, prompts=iter(()), seed=0)
