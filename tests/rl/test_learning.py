"""The pieces together on the real model: engine and trainer agree, and what is rewarded becomes likely."""

import dataclasses
import itertools

import pytest
import torch

from sail_train.model.packed import PackedLM
from sail_train.rewards.mix import Reward
from sail_train.rl.batch import pack
from sail_train.rl.config import DynamicSamplingConfig, ParityConfig, RLConfig
from sail_train.rl.groups import Roller
from sail_train.rl.metrics import update_metrics
from sail_train.rl.objectives.objective import Objective
from sail_train.rl.parity import ParityError, check_parity, is_due
from sail_train.rl.rollout import build_engine
from sail_train.types import Score

PATCH_DIM = 48


class LikesLetters:
    """Rewards responses whose first character is a lower-case letter."""

    def score(self, samples):
        return [self.reward(sample.response[:1]) for sample in samples]

    def reward(self, first):
        score = Score(value=float(first.islower()))
        return Reward(total=score, parts={"answer": score, "format": Score(value=1.0)})


def make_config(**options):
    defaults = {
        "prompts_per_step": 8,
        "group_size": 8,
        "max_new_tokens": 4,
        "mini_batches": 2,
        "dynamic_sampling": DynamicSamplingConfig(enable=False),
        "micro_batch_tokens": 600,
    }
    return RLConfig(**{**defaults, **options})


@pytest.fixture
def make_roller(model, processor, make_conversation):
    def make(config, *, images=1):
        return Roller(
            config,
            processor=processor,
            engine=build_engine(model, processor, config),
            rewards=LikesLetters(),
            prompts=(make_conversation(number % 16, images=images) for number in itertools.count()),
            seed=0,
        )

    return make


@pytest.mark.parametrize("objective", ["dapo", "gspo", "cispo"])
def test_what_is_rewarded_becomes_likely(model, processor, make_roller, objective):
    config = make_config(objective=objective)
    roller, loss = make_roller(config), Objective(config)
    module = PackedLM(model)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.0)
    accuracy, metrics = [], {}
    for number in range(20):
        batch = roller.roll(number)
        accuracy.append(batch.metrics["rollout/answer"])
        for mini in batch.mini_batches:
            optimizer.zero_grad()
            totals: dict[str, float] = {}
            for micro in pack(
                mini,
                micro_batch_tokens=config.micro_batch_tokens,
                patch_dim=PATCH_DIM,
                pad_token_id=processor.tokenizer.pad_token_id,
            ):
                value, sums = loss.loss(module, micro)
                (value / loss.denominator(mini)).backward()
                totals = {name: totals.get(name, 0.0) + float(total) for name, total in sums.items()}
            optimizer.step()
            metrics = update_metrics(totals)
    # Over three seeds and all objectives the gain was 0.50 to 0.75; GSPO is the slowest, most of its second
    # mini batches are clipped.
    assert sum(accuracy[-4:]) / 4 > sum(accuracy[:2]) / 2 + 0.4, accuracy
    assert 0.5 < metrics["update/ratio"] < 2 and metrics["update/entropy"] > 0


def test_the_first_update_starts_at_ratio_one(model, processor, make_roller):
    config = make_config()
    batch = make_roller(config).roll(0)
    micro = pack(batch.mini_batches[0], micro_batch_tokens=10_000, patch_dim=PATCH_DIM, pad_token_id=0)[0]
    _, sums = Objective(config).loss(PackedLM(model), micro)
    assert float(sums["ratio"]) / sums["tokens"] == pytest.approx(1.0, abs=1e-4)
    assert float(sums["clipped"]) == 0


def test_the_same_seed_gives_the_same_rollouts(make_roller):
    first, second = (make_roller(make_config()).roll(3) for _ in range(2))
    assert [r.to_record() for r in first.rollouts] == [r.to_record() for r in second.rollouts]


@pytest.mark.parametrize("images", [0, 1, 2])
def test_engine_and_trainer_agree_on_text_and_images(model, make_roller, images):
    config = make_config(temperature=0.8, parity=ParityConfig(probes=16, tolerance=1e-4))
    rollouts = make_roller(config, images=images).roll(0).rollouts
    metrics = check_parity(PackedLM(model), rollouts, config, pad_token_id=0)
    assert metrics["parity/max"] < 1e-4


def test_swapped_images_other_weights_and_nan_fail_the_gate(model, make_roller):
    config = make_config(parity=ParityConfig(probes=16, tolerance=1e-5))
    rollouts = make_roller(config).roll(0).rollouts
    module = PackedLM(model)
    swapped = [
        dataclasses.replace(
            r,
            ask=dataclasses.replace(
                r.ask, prompt=dataclasses.replace(r.ask.prompt, patches=255 - r.ask.prompt.patches)
            ),
        )
        for r in rollouts
    ]
    with pytest.raises(ParityError, match="rl.parity.tolerance"):
        check_parity(module, swapped, config, pad_token_id=0)
    with torch.no_grad():
        model.language_model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    with pytest.raises(ParityError):
        check_parity(module, rollouts, config, pad_token_id=0)
    with torch.no_grad():
        model.language_model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ParityError):
        check_parity(module, rollouts, config, pad_token_id=0)


def test_the_gate_is_due_at_the_start_and_every_so_often():
    assert [number for number in range(9) if is_due(make_config(parity=ParityConfig(every=4)), number)] == [0, 4, 8]
    assert not is_due(make_config(parity=ParityConfig(every=0)), 0)


def test_an_unknown_engine_is_named(model, processor):
    with pytest.raises(ValueError, match="rl.engine"):
        build_engine(model, processor, make_config(engine="vlm"))
