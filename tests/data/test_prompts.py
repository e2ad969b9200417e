"""Prompts for RL and held-out reading."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.prompts import PromptStream
from sail_train.data.quarantine import TooManyBadSamples
from sail_train.processor.processor import SailVLProcessor


def positions_of(streams: list[PromptStream]) -> dict[str, Any]:
    merged = {key: state for stream in streams for key, state in stream.positions.items()}
    return json.loads(json.dumps(merged))


def drawn(streams: list[PromptStream], count: int, start: int = 0) -> list[Any]:
    """Prompts of all ranks in the order of the run, from number `start` on."""
    return [next(streams[number % len(streams)])[0] for number in range(start, start + count)]


@pytest.mark.parametrize("world", [2, 4])
def test_the_prompts_of_a_run_do_not_depend_on_the_number_of_ranks(
    mixture: DataConfig, processor: SailVLProcessor, world: int
) -> None:
    alone = drawn([PromptStream(mixture, processor, seed=1)], 80)
    ranks = [PromptStream(mixture, processor, seed=1, rank=rank, world=world) for rank in range(world)]
    assert drawn(ranks, 80) == alone
    assert alone != drawn([PromptStream(mixture, processor, seed=2)], 80)


@pytest.mark.parametrize("stopped", [0, 1, 37, 120])
def test_prompts_go_on_where_they_stopped_on_any_number_of_ranks(
    mixture: DataConfig, processor: SailVLProcessor, stopped: int
) -> None:
    stream = PromptStream(mixture, processor, seed=1)
    for _ in range(stopped):
        _, positions = next(stream)
        assert positions == stream.positions
    saved, before = positions_of([stream]), stream.take_quarantined()
    expected, records = drawn([stream], 40), stream.take_quarantined()
    for world in (1, 2):
        ranks = [PromptStream(mixture, processor, seed=1, rank=rank, world=world) for rank in range(world)]
        for rank in ranks:
            rank.load_state(saved)
        assert drawn(ranks, 40, stopped) == expected
        found = [record for rank in ranks for record in rank.take_quarantined()]
        assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, records))
    assert stopped < 120 or before


def test_prompts_that_a_rollout_could_not_use_are_quarantined(
    mixture: DataConfig, processor: SailVLProcessor, make: SimpleNamespace, tmp_path: Path
) -> None:
    answer_only = json.dumps({"messages": [{"role": "assistant", "content": "hi"}]}).encode()
    part = {"role": "assistant", "content": [{"type": "image"}]}
    picture = json.dumps({"messages": [{"role": "user", "content": "draw"}, part]}).encode()
    question = {"role": "user", "content": "red " * 300}
    make.tar(
        tmp_path / "second" / "zzbad.tar",
        [
            ("answer.json", answer_only),
            ("picture.0.png", make.image(1)),
            ("picture.json", picture),
            ("long.json", json.dumps({"messages": [question]}).encode()),
            ("asked.json", json.dumps({"messages": [{"role": "user", "content": "what"}]}).encode()),
        ],
    )
    stream = PromptStream(mixture, processor, seed=0)
    keys = {conversation.key for conversation in drawn([stream], 400)}
    reasons = {record["key"]: record["reason"] for record in stream.take_quarantined()}
    assert reasons == {
        "a": "image_undecodable",
        "b": "bad_json",
        "c": "refused_file",
        "answer": "no_question",
        "picture": "assistant_image",
        "long": "too_long",
    }
    # a long answer is no prompt's concern, and a question needs no answer to be asked
    assert {"d", "asked"} <= keys and not keys & set(reasons)
    assert stream.take_quarantined() == ()


def test_prompts_stop_over_budget_and_refuse_ranks_that_do_not_fit(
    mixture: DataConfig, processor: SailVLProcessor
) -> None:
    mixture.sources["second"].max_bad = 1
    with pytest.raises(TooManyBadSamples, match="source 'second': 2 of"):
        drawn([PromptStream(mixture, processor, seed=0)], 400)
    with pytest.raises(
        ValueError, match="3 ranks cannot share num_streams=4 equally; numbers of ranks that fit: 1, 2, 4"
    ):
        PromptStream(mixture, processor, seed=0, world=3)


@pytest.mark.parametrize("world", [1, 2])
def test_bad_samples_after_the_last_prompt_are_told_once_by_streams_that_end(
    mixture: DataConfig, processor: SailVLProcessor, make: SimpleNamespace, tmp_path: Path, world: int
) -> None:
    """By rank 0, whose stream ends, and not again by a run that goes on from there."""
    bad = [(f"{number}.json", b"{") for number in range(3)]
    good = json.dumps({"messages": [{"role": "user", "content": "what"}]}).encode()
    make.tar(tmp_path / "few" / "few.tar", [*bad[:1], ("good.json", good), *bad[1:]])
    source = SourceConfig(shards=f"{tmp_path}/few/*.tar", epochs=1, max_bad=99)
    few = dataclasses.replace(mixture, sources={"few": source}, num_streams=world)

    def streams() -> list[PromptStream]:
        return [PromptStream(few, processor, seed=0, rank=rank, world=world) for rank in range(world)]

    ended = streams()
    keys = [[conversation.key for conversation, _ in stream] for stream in ended]
    assert sum(keys, []) == ["good"]
    assert sorted(record["key"] for stream in ended for record in stream.pending) == ["0", "1", "2"]
    again = streams()
    for stream in again:
        stream.load_state(positions_of(ended))
        assert next(stream, None) is None and stream.take_quarantined() == ()


def test_ranks_of_prompts_need_not_fit_the_rows_of_a_batch(mixture: DataConfig, processor: SailVLProcessor) -> None:
    conversation, _ = next(PromptStream(dataclasses.replace(mixture, batch_rows=1), processor, seed=0, world=2))
    assert conversation.prompt


# held out


def test_held_out_sources_are_read_once_in_order(tmp_path: Path, make: SimpleNamespace) -> None:
    sources = {
        name: SourceConfig(shards=make.shards(tmp_path, name, range(start, start + 12), per_shard=5))
        for name, start in (("b", 0), ("a", 50))
    }
    found = held_out(sources)
    expected = [("b", f"{number:06d}") for number in range(12)] + [("a", f"{number:06d}") for number in range(50, 62)]
    assert [(conversation.source, conversation.key) for conversation in found] == expected
    assert [conversation.key for conversation in held_out(sources, 7)] == [
        key for _, key in expected[:7] + expected[12:19]
    ]
    assert found[1].images == make.sample(1).images and found[1].answer == "1"


def test_bad_held_out_samples_are_logged_and_too_many_are_an_error(
    mixture: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    source = mixture.sources["second"]
    with caplog.at_level(logging.WARNING):
        found = held_out({"second": source})
    assert len(found) == 40 + 3
    assert "zbad.tar, sample 1: bad_json" in caplog.text and "zbad.tar, sample 2: refused_file" in caplog.text
    source.max_bad = 0.01
    with pytest.raises(ValueError, match="held-out source 'second': 2 of 45 samples are bad"):
        held_out({"second": source})


def test_held_out_images_that_are_none_are_left_out(tmp_path: Path, make: SimpleNamespace) -> None:
    files = [("a.json", make.json()), ("b.0.png", b"no picture"), ("b.json", make.json(images=1))]
    source = SourceConfig(shards=str(make.tar(tmp_path / "a.tar", files)), max_bad=1)
    assert [conversation.key for conversation in held_out({"a": source})] == ["a"]


def test_a_held_out_source_without_samples_is_an_error(tmp_path: Path, make: SimpleNamespace) -> None:
    shard = make.tar(tmp_path / "a.tar", [("a.json", b"{")])
    with pytest.raises(ValueError, match="source 'a': shards='.*a.tar' holds no sample that can be used"):
        held_out({"a": SourceConfig(shards=str(shard), max_bad=5)})
    with pytest.raises(ValueError, match="matches no file"):
        held_out({"a": SourceConfig(shards=str(tmp_path / "*.gone"))})


def test_prompts_have_no_budget_of_tokens(two: DataConfig, processor: SailVLProcessor) -> None:
    two.sources["a"].max_tokens = 5
    with pytest.raises(ValueError, match=r"data.sources.a.max_tokens=5 counts tokens of packed samples.*use epochs"):
        PromptStream(two, processor, seed=0)


def test_prompts_end_with_their_epochs(two: DataConfig, processor: SailVLProcessor) -> None:
    for source in two.sources.values():
        source.epochs = 1
    keys = [conversation.key for conversation, _ in PromptStream(two, processor, seed=0)]
    assert len(set(keys)) == len(keys) == 60
