from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import pytest

from sail_train.eval.config import EvalConfig
from sail_train.eval.evaluate import compare_modes, evaluate
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.processor import SailVLProcessor
from sail_train.types import Conversation

Model, Make = SailVLForConditionalGeneration, Callable[..., EvalConfig]


def number(uid: str) -> int:
    return int(uid.rpartition("/")[2])


def test_metrics_of_known_answers(
    model: Model, processor: SailVLProcessor, suite: list, make_config: Make, script
) -> None:
    script.say = lambda uid, prompt, copy: "<think>\n\n</think>\n\n" + ("123" if number(uid) % 2 else "120")
    script.cut = lambda uid: number(uid) == 0
    metrics = evaluate(model, processor, {"read": suite}, make_config({"read": ["greedy"]}), seed=0).metrics
    assert metrics["read/greedy"] == pytest.approx(3 / 7)
    assert metrics["read/greedy_se"] == pytest.approx(np.sqrt(3 / 7 * 4 / 7 / 7))
    assert metrics["read/greedy_digits"] == pytest.approx((3 + 4 * 2 / 3) / 7)
    assert metrics["read/greedy_truncated"] == pytest.approx(1 / 7)
    assert metrics["read/greedy_n"] == 7
    assert metrics["read/greedy_thinks"] == 0


def test_flags_are_asked_for_and_compared(
    model: Model, processor: SailVLProcessor, suite: list, make_config: Make, script
) -> None:
    def say(uid: str, prompt: str, copy: int) -> str:
        if "/no_think" in prompt:
            return "<think>\n\n</think>\n\n\\boxed{1}"
        return "<think>\n1 2 3\n</think>\n\n\\boxed{123}" if "/think" in prompt else "\\boxed{123}"

    script.say = say
    config = make_config({"read": ["on", "off", "auto"]})
    result = evaluate(model, processor, {"read": suite}, config, seed=0)
    metrics = result.metrics
    assert [metrics[f"read/{mode}"] for mode in ("on", "off", "auto")] == [1.0, 0.0, 1.0]
    assert [metrics[f"read/{mode}_thinks"] for mode in ("on", "off", "auto")] == [1.0, 0.0, 0.0]
    assert metrics["read/on_followed"] == metrics["read/off_followed"] == 1.0
    assert "read/auto_followed" not in metrics
    assert (metrics["read/on_minus_off"], metrics["read/on_minus_off_se"]) == (1.0, 0.0)
    assert len(result.samples) == 3 * len(suite)


def test_a_forced_thought_is_graded_with_its_opening(
    model: Model, processor: SailVLProcessor, suite: list, make_config: Make, script
) -> None:
    script.say = lambda uid, prompt, copy: "1 2 3\n</think>\n\n\\boxed{123}"
    result = evaluate(model, processor, {"read": suite}, make_config({"read": ["on_forced"]}), seed=0)
    assert result.metrics["read/on_forced_format"] == 1.0
    prompts, _ = script.asked[0]
    assert processor.tokenizer.decode(prompts[0].input_ids).endswith("<think>\n")


def test_a_direct_answers_form_is_that_of_the_chat_style(
    model: Model, processor: SailVLProcessor, suite: list, make_config: Make, script
) -> None:
    script.say = lambda uid, prompt, copy: "\\boxed{123}"
    config = make_config({"read": ["off", "off_forced"]})
    suite = [dataclasses.replace(one, messages=one.prompt) for one in suite]
    assert evaluate(model, processor, {"read": suite}, config, seed=0).metrics["read/off_format"] == 0.0
    sail = SailVLProcessor(copy.deepcopy(processor.tokenizer), {"max_pixels": 56 * 56}, template="sail_vl2")
    metrics = evaluate(model, sail, {"read": suite}, config, seed=0).metrics
    assert metrics["read/off_format"] == metrics["read/off_forced_format"] == metrics["read/off_followed"] == 1.0
    assert script.asked[-1][0][0].input_ids.tolist() == script.asked[-2][0][0].input_ids.tolist(), "nothing to force"


def test_modes_that_ask_the_same_are_generated_once(
    model: Model, processor: SailVLProcessor, suite: list, make_config: Make, script
) -> None:
    result = evaluate(model, processor, {"read": suite}, make_config({"read": ["greedy", "auto"]}), seed=0)
    assert len(script.asked) == 1
    assert result.metrics["read/greedy_tokens"] == result.metrics["read/auto_tokens"]
    assert {record["mode"] for record in result.samples} == {"greedy", "auto"}


def test_several_samples_are_drawn_only_with_a_temperature(
    model: Model, processor: SailVLProcessor, suite: list, make_config: Make, script
) -> None:
    script.say = lambda uid, prompt, copy: "123" if copy == 0 else "0"
    config = make_config({"read": ["greedy", "t1"]}, samples=4)
    metrics = evaluate(model, processor, {"read": suite}, config, seed=5).metrics
    assert metrics["read/greedy"] == 1.0
    assert metrics["read/t1"] == 0.25 and metrics["read/t1_n"] == 7
    assert [(sampling.n, sampling.temperature, sampling.seed) for _, sampling in script.asked] == [(1, 0, 5), (4, 1, 5)]


def test_the_limit_takes_the_first_prompts(
    model: Model, processor: SailVLProcessor, suite: list, make_config: Make, script
) -> None:
    result = evaluate(model, processor, {"read": suite}, make_config({"read": ["greedy"]}, limit=4), seed=0)
    assert [record["key"] for record in result.samples] == [f"k{index:03d}" for index in range(4)]
    assert len(result.passes["read/greedy"].scores) == 4


def test_blank_images_show_nothing(
    model: Model, processor: SailVLProcessor, suite: list, make_config: Make, script
) -> None:
    evaluate(model, processor, {"read": suite}, make_config({"read": ["greedy"]}, blank=True), seed=0)
    evaluate(model, processor, {"read": suite}, make_config({"read": ["greedy"]}), seed=0)
    (blanked, _), (seen, _) = script.asked
    assert all(set(np.unique(prompt.patches)) <= {128} for prompt in blanked)
    for blank, real in zip(blanked, seen, strict=True):
        assert blank.input_ids.tolist() == real.input_ids.tolist() and blank.grids == real.grids


@pytest.mark.parametrize("mode", ["greedy", "t1"])
def test_neither_batches_nor_ranks_change_an_answer(
    model: Model, processor: SailVLProcessor, suite: list, make_config: Make, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(model, processor, {"read": suite}, make_config({"read": [mode]}, batch_size=7), seed=1)
    single = evaluate(model, processor, {"read": suite}, make_config({"read": [mode]}, batch_size=1), seed=1)
    assert [record["response"] for record in single.samples] == [record["response"] for record in whole.samples]
    assert single.metrics == whole.metrics

    shares: dict[int, list] = {}
    monkeypatch.setattr("sail_train.eval.evaluate.dist.gather_objects", lambda mine: [mine])
    for rank in range(3):
        config = make_config({"read": [mode]}, batch_size=2)
        shares[rank] = evaluate(model, processor, {"read": suite}, config, seed=1, rank=rank, world=3).samples
        assert [record["index"] for record in shares[rank]] == list(range(rank, 7, 3))
    monkeypatch.setattr("sail_train.eval.evaluate.dist.gather_objects", lambda mine: list(shares.values()))
    gathered = evaluate(model, processor, {"read": suite}, config, seed=1, rank=0, world=3)
    assert gathered.samples == whole.samples
    assert gathered.metrics == whole.metrics and gathered.passes == whole.passes


def test_the_seed_decides_what_is_drawn(
    model: Model, processor: SailVLProcessor, suite: list, make_config: Make
) -> None:
    def drawn(seed: int) -> list[str]:
        result = evaluate(model, processor, {"read": suite}, make_config({"read": ["t1"]}), seed=seed)
        return [record["response"] for record in result.samples]

    assert drawn(0) == drawn(0) != drawn(1)


def test_answers_depend_on_the_image(model: Model, processor: SailVLProcessor, suite: list, make_config: Make) -> None:
    def said(blank: bool) -> list[str]:
        config = make_config({"read": ["t1"]}, blank=blank)
        samples = evaluate(model, processor, {"read": suite}, config, seed=0).samples
        return [record["response"] for record in samples if record["images"]]

    assert said(blank=True) != said(blank=False)


def test_a_broken_image_is_left_out_and_told(
    model: Model, processor: SailVLProcessor, suite: list, make_config: Make, script, caplog: pytest.LogCaptureFixture
) -> None:
    suite[1] = dataclasses.replace(suite[1], images=(suite[1].images[0][:60],))
    with caplog.at_level(logging.WARNING, logger="sail_train"):
        result = evaluate(model, processor, {"read": suite}, make_config({"read": ["greedy"]}), seed=0)
    assert result.metrics["read/greedy_n"] == 6
    assert result.passes["read/greedy"].scores[1] is None
    assert "k001" in caplog.text


def test_suites_that_cannot_be_graded_are_refused(
    model: Model, processor: SailVLProcessor, make_config: Make, make_conversation: Callable[..., Conversation], script
) -> None:
    config = make_config({"read": ["greedy"]})
    with pytest.raises(ValueError, match="eval.suites.read has no conversations"):
        evaluate(model, processor, {}, config, seed=0)
    for missing in ({"answer": None}, {"verifier": None}):
        with pytest.raises(ValueError, match="k000 has no answer or no verifier"):
            evaluate(model, processor, {"read": [make_conversation(0, **missing)]}, config, seed=0)
    broken = dataclasses.replace(make_conversation(0), images=(b"broken",))
    with pytest.raises(ValueError, match="every one of its 1 samples is broken"):
        evaluate(model, processor, {"read": [broken]}, config, seed=0)


def test_only_modes_that_were_asked_are_compared() -> None:
    assert compare_modes({"a/on": [1.0], "b/off": [0.0]}) == {}
    assert compare_modes({"a/on": [1.0, 1.0], "a/off": [1.0, 0.0]})["a/on_minus_off"] == 0.5
