"""The generator: what it draws does not depend on the batch, and its log-probs are the training forward's."""

import dataclasses

import numpy as np
import pytest
import torch

from sail_train.generate.generator import Generator
from sail_train.types import Sampling

STOP, PAD, IMAGE = 1, 0, 3


def make(model, **options):
    return Generator(model, stop_token_ids=[STOP], pad_token_id=PAD, banned_token_ids=[IMAGE], **options)


def tokens(result):
    return [[(c.token_ids, c.finish_reason) for c in group] for group in result]


def test_logprobs_equal_a_plain_forward_on_text_and_images(model, make_prompts, reference_logprobs):
    prompts = make_prompts(8)
    result = make(model).generate(prompts, Sampling(max_new_tokens=24, n=3, temperature=0.7))
    for prompt, group in zip(prompts, result, strict=True):
        for c in group:
            expected = reference_logprobs(prompt, c.token_ids, temperature=0.7)
            torch.testing.assert_close(torch.tensor(c.logprobs), expected, atol=3e-5, rtol=0)


def test_swapped_images_change_the_logprobs(model, make_prompts, reference_logprobs):
    prompts = [p for p in make_prompts(8) if p.grids]
    result = make(model).generate(prompts, Sampling(max_new_tokens=8))
    other = dataclasses.replace(prompts[0], patches=255 - prompts[0].patches)
    expected = reference_logprobs(other, result[0][0].token_ids)
    assert (torch.tensor(result[0][0].logprobs) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("max_batch", [1, 4, 7, 64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_completions_do_not_depend_on_the_batch_size(model, make_prompts, max_batch, temperature):
    prompts = make_prompts(8)
    sampling = Sampling(max_new_tokens=24, n=3, temperature=temperature, seed=5)
    alone = [make(model).generate([p], sampling)[0] for p in prompts]
    together = make(model, max_batch=max_batch).generate(prompts, sampling)
    assert tokens(together) == tokens(alone)
    for group, other in zip(together, alone, strict=True):
        for c, d in zip(group, other, strict=True):
            np.testing.assert_allclose(c.logprobs, d.logprobs, atol=1e-5)


def test_completions_do_not_depend_on_the_order_of_prompts(model, make_prompts):
    prompts, sampling = make_prompts(6), Sampling(max_new_tokens=12, n=2)
    forward = make(model, max_batch=3).generate(prompts, sampling)
    backward = make(model, max_batch=3).generate(prompts[::-1], sampling)
    assert tokens(forward) == tokens(backward[::-1])
    assert [group[0].uid for group in forward] == [p.uid for p in prompts]


def test_seed_and_copy_change_the_draw_and_the_same_seed_repeats_it(model, make_prompts):
    prompts = make_prompts(4)
    first = make(model).generate(prompts, Sampling(max_new_tokens=16, n=2, seed=1))
    again = make(model).generate(prompts, Sampling(max_new_tokens=16, n=2, seed=1))
    other = make(model).generate(prompts, Sampling(max_new_tokens=16, n=2, seed=2))
    assert tokens(first) == tokens(again) != tokens(other)
    assert any(group[0].token_ids != group[1].token_ids for group in first)


def test_a_longer_limit_begins_with_the_shorter_completion(model, make_prompts):
    prompts = make_prompts(4)
    short = make(model).generate(prompts, Sampling(max_new_tokens=5))
    long = make(model).generate(prompts, Sampling(max_new_tokens=20))
    for (a,), (b,) in zip(short, long, strict=True):
        assert b.token_ids[: len(a.token_ids)] == a.token_ids


def test_the_end_token_is_kept_and_ends_a_completion(model, make_prompts):
    result = make(model).generate(make_prompts(12), Sampling(max_new_tokens=60, n=4))
    reasons = set()
    for c in (c for group in result for c in group):
        reasons.add(c.finish_reason)
        assert len(c.logprobs) == len(c.token_ids)
        assert STOP not in c.token_ids[:-1]
        assert (c.finish_reason == "stop") == (c.token_ids[-1] == STOP)
        assert c.finish_reason == "stop" or len(c.token_ids) == 60
    assert reasons == {"stop", "length"}


def test_forbidden_tokens_are_never_drawn(model, make_prompts):
    with torch.no_grad():
        model.language_model.get_input_embeddings().weight[[PAD, IMAGE]] *= 3  # tied: makes both very likely
    result = make(model).generate(make_prompts(6), Sampling(max_new_tokens=30, n=8, temperature=2.0))
    drawn = {token for group in result for c in group for token in c.token_ids}
    assert not drawn & {PAD, IMAGE}


def test_frequencies_follow_the_distribution(model, make_prompts, reference_logprobs):
    prompt = make_prompts(1)[0]
    count = 4000
    result = make(model, max_batch=count).generate([prompt], Sampling(max_new_tokens=1, n=count))[0]
    drawn = np.bincount([c.token_ids[0] for c in result], minlength=61) / count
    likely = int(drawn.argmax())
    probability = float(reference_logprobs(prompt, (likely,)).exp())
    assert abs(drawn[likely] - probability) < 4 * (probability * (1 - probability) / count) ** 0.5


def test_a_prompt_with_images_is_embedded_once_for_all_its_completions(model, make_prompts):
    calls = []
    model.vision.register_forward_hook(lambda *_: calls.append(1))
    make(model).generate(make_prompts(1), Sampling(max_new_tokens=10, n=8))
    assert len(calls) == 1


def test_top_k_of_one_is_greedy_with_certainty(model, make_prompts):
    prompts = make_prompts(3)
    greedy = make(model).generate(prompts, Sampling(max_new_tokens=8, temperature=0))
    only = make(model).generate(prompts, Sampling(max_new_tokens=8, top_k=1))
    assert tokens(greedy) == tokens(only)
    assert all(abs(value) < 1e-6 for group in only for value in group[0].logprobs)


def test_training_mode_comes_back_even_after_an_error(model, make_prompts):
    model.train()
    model.vision.eval()
    make(model).generate(make_prompts(2), Sampling(max_new_tokens=2))
    assert model.training and model.language_model.training and not model.vision.training
    broken = dataclasses.replace(make_prompts(1)[0], patches=np.zeros((1, 48), np.uint8))
    with pytest.raises(ValueError, match="patches"):
        make(model).generate([broken], Sampling(max_new_tokens=2))
    assert model.training


def test_no_prompt_gives_no_completion(model):
    assert make(model).generate([], Sampling()) == []


def test_a_repeated_uid_is_refused(model, make_prompts):
    prompt = make_prompts(1)[0]
    with pytest.raises(ValueError, match="'p0' appears twice"):
        make(model).generate([prompt, prompt], Sampling())


def test_a_generator_without_end_token_is_refused(model):
    with pytest.raises(ValueError, match="stop_token_ids"):
        Generator(model, stop_token_ids=[], pad_token_id=0)


def test_a_batch_of_nothing_is_refused(model):
    with pytest.raises(ValueError, match="max_batch=0"):
        make(model, max_batch=0)
