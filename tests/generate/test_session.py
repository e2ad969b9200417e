"""The session: requests come and go at any time, and each gets what the generator would have given it alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sail_train.generate.generator import Generator
from sail_train.generate.session import PromptTooLarge, Session
from sail_train.types import Sampling

STOP, PAD, IMAGE = 1, 0, 3


def generator(model, **options):
    return Generator(model, stop_token_ids=[STOP], pad_token_id=PAD, banned_token_ids=[IMAGE], **options)


def samplings():
    """One for each prompt, no two alike."""
    return [
        Sampling(max_new_tokens=20, temperature=0.0),
        Sampling(max_new_tokens=31, temperature=1.0, seed=3, n=2),
        Sampling(max_new_tokens=5, temperature=0.7, seed=1),
        Sampling(max_new_tokens=1, temperature=0.0, n=3),
        Sampling(max_new_tokens=90, temperature=1.3, top_k=20, seed=2),
        Sampling(max_new_tokens=12, temperature=1.0, top_p=0.8, seed=5),
        Sampling(max_new_tokens=33, temperature=0.0, n=2),
        Sampling(max_new_tokens=8, temperature=1.0, seed=8),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_request_that_comes_late_gets_what_it_would_have_got_alone(model, make_prompts, seed):
    """Prompts enter in random order between random steps, longer ones behind shorter ones too."""
    chance, prompts, wanted = random.Random(seed), make_prompts(8), samplings()
    alone = [generator(model).generate([p], s)[0] for p, s in zip(prompts, wanted, strict=True)]
    session, waiting, begun = Session(generator(model, max_batch=5)), list(range(8)), {}
    chance.shuffle(waiting)
    together = 0
    while waiting or session.live:
        if waiting and wanted[waiting[0]].n <= session.free and (not session.live or chance.random() < 0.3):
            number = waiting.pop(0)
            begun[number] = session.admit(prompts[number], wanted[number])
        session.step()
        together = max(together, len(session.live))
    assert together >= 3
    for number, expected in enumerate(alone):
        for writing, completion in zip(begun[number], expected, strict=True):
            assert tuple(writing.token_ids) == completion.token_ids
            assert writing.finish_reason == completion.finish_reason
            np.testing.assert_allclose(writing.logprobs, completion.logprobs, atol=1e-5)


def test_a_row_that_its_caller_ends_is_free_at_once_and_disturbs_no_other(model, make_prompts):
    prompts, sampling = make_prompts(3), Sampling(max_new_tokens=25, temperature=1.0, seed=4)
    alone = generator(model).generate([prompts[2]], sampling)[0][0]
    session = Session(generator(model, max_batch=3))
    first, second, third = (session.admit(prompt, sampling)[0] for prompt in prompts)
    session.step()
    first.finish_reason = "left"
    assert third in session.step() and first not in session.live and session.free >= 1
    while session.live:
        session.step()
    assert tuple(third.token_ids) == alone.token_ids and second.finish_reason in ("stop", "length")


def test_a_stream_gives_each_token_once_and_leaving_it_frees_the_row(model, make_prompts):
    (prompt,), sampling = make_prompts(1), Sampling(max_new_tokens=15, temperature=0.9, seed=1)
    session = Session(generator(model, max_batch=1))
    assert tuple(session.stream(prompt, sampling)) == generator(model).generate([prompt], sampling)[0][0].token_ids
    for _ in session.stream(prompt, sampling):
        break
    assert session.free == 1


def test_a_cleared_session_starts_anew(model, make_prompts):
    prompts, sampling = make_prompts(2), Sampling(max_new_tokens=9, temperature=0.0)
    session = Session(generator(model))
    session.admit(prompts[0], sampling)
    session.clear()
    assert session.step() == [] and session.free == session.rows
    assert (
        tuple(session.stream(prompts[1], sampling)) == generator(model).generate(prompts[1:], sampling)[0][0].token_ids
    )


def test_more_completions_than_rows_are_refused(model, make_prompts):
    with pytest.raises(ValueError, match="n=3 .* 2 rows"):
        Session(generator(model, max_batch=2)).admit(make_prompts(1)[0], Sampling(n=3))


def test_nothing_is_kept_for_gradients(model, make_prompts):
    session = Session(generator(model.train()))
    with torch.enable_grad():
        session.admit(make_prompts(1)[0], Sampling(max_new_tokens=3, temperature=0.0))
        session.step()
    assert not model.training
    assert all(not layer.keys.requires_grad for layer in (session._cache.slot_layers if session._cache else []))


def test_one_long_request_reserves_one_row_and_more_come_as_they_are_needed(model, make_prompts):
    """With hundreds of possible rows a cache of all of them, as long as the longest, would not fit a device."""
    prompts, wanted = make_prompts(4), samplings()
    alone = [generator(model).generate([p], s)[0] for p, s in zip(prompts, wanted, strict=False)]
    session, begun, rows = Session(generator(model, max_batch=256)), [], []
    for prompt, sampling in zip(prompts, wanted, strict=False):
        begun.append(session.admit(prompt, sampling))
        rows.append(session._cache.rows)
        session.step()
    assert rows[0] == 1 and rows == sorted(rows) and rows[-1] <= 2 * sum(s.n for s in wanted[:4])
    while session.live:
        session.step()
    for writings, expected in zip(begun, alone, strict=True):
        assert [tuple(w.token_ids) for w in writings] == [c.token_ids for c in expected]


def test_a_prompt_without_memory_leaves_the_others_as_they_are(model, make_prompts, monkeypatch):
    prompts, sampling = make_prompts(2), Sampling(max_new_tokens=25, temperature=1.0, seed=4)
    alone = generator(model).generate([prompts[0]], sampling)[0][0]
    session = Session(generator(model))
    (writing,) = session.admit(prompts[0], sampling)
    session.step()
    forward = session._forward

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(session, "_forward", full)
    with pytest.raises(PromptTooLarge, match=f"no memory for a prompt of {len(prompts[1].input_ids)} tokens"):
        session.admit(prompts[1], sampling)
    monkeypatch.setattr(session, "_forward", forward)
    while session.live:
        session.step()
    assert tuple(writing.token_ids) == alone.token_ids
