"""How much of a source is read, when, and what of it: epochs, budgets, steps, weights, filters, temperature."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sail_train.data import index
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.dataset import dataset_size
from sail_train.data.held_out import held_out
from sail_train.data.interleave import budget_of, candidates, mixture, order_settings, shard_lists
from sail_train.data.listing import expand
from sail_train.data.mix import Mixture
from sail_train.data.prompts import PromptStream
from sail_train.data.quarantine import Ledger
from sail_train.data.shuffle import Shuffle
from sail_train.data.stream import Stream
from sail_train.processor.processor import SailVLProcessor


def opened(config: DataConfig, stream: int = 0) -> tuple[Shuffle, Ledger]:
    ledger = budget_of(config).ledger()
    return candidates(config, shard_lists(config), seed=0, stream=stream, ledger=ledger), ledger


def rest(stream: Shuffle, limit: int = 10_000) -> list[tuple[str, str]]:
    found = []
    while len(found) < limit and (candidate := next(stream, None)) is not None:
        found.append((candidate.raw.source, candidate.raw.key))
    return found


def shards(config: DataConfig, name: str) -> list[str]:
    return list(expand(name, config.sources[name].patterns))


# epochs


def test_a_source_is_read_its_number_of_epochs_and_then_leaves_the_others_the_stream(two: DataConfig) -> None:
    two.sources["a"].epochs, two.sources["b"].epochs = 1, 3
    stream, _ = opened(two)
    counts = Counter(rest(stream))
    assert {key: count for (source, key), count in counts.items() if source == "a"} == {
        f"{number:06d}": 1 for number in range(40)
    }
    assert [count for (source, _), count in counts.items() if source == "b"] == [3] * 20
    assert next(stream, None) is None, "an exhausted stream stays exhausted"


@pytest.mark.parametrize("num_streams", [1, 3])
def test_of_a_part_of_an_epoch_each_sample_has_that_chance(two: DataConfig, num_streams: int) -> None:
    two.sources["a"].epochs, two.sources["b"].epochs = 1.5, 0.01
    two = dataclasses.replace(two, num_streams=num_streams)
    counts: Counter[str] = Counter()
    for number in range(num_streams):
        counts.update(key for source, key in rest(opened(two, number)[0]) if source == "a")
    assert set(counts.values()) == {1, 2} and 50 <= counts.total() <= 70


def test_a_shuffle_buffer_is_drawn_empty_at_the_end(two: DataConfig) -> None:
    for source in two.sources.values():
        source.epochs = 1
    plain = rest(opened(two)[0])
    shuffled = rest(opened(dataclasses.replace(two, shuffle_buffer=13))[0])
    assert sorted(shuffled) == sorted(plain) and shuffled != plain


def test_a_stream_of_rows_ends_and_its_last_rows_hold_what_waited(two: DataConfig, processor: SailVLProcessor) -> None:
    for source in two.sources.values():
        source.epochs = 1
    stream = Stream(dataclasses.replace(two, pack_buffer=8, shuffle_buffer=4), processor, seed=0)
    keys: list[str] = []
    while (row := stream.next_row()).samples:
        keys += [sample.key for sample in row.samples]
    assert not stream.next_row().samples
    assert sorted(keys) == [f"{number:06d}" for number in [*range(40), *range(100, 120)]]


# budgets


def test_tokens_of_a_source_end_with_its_budget_and_what_waits_then_is_left_out(
    two: DataConfig, processor: SailVLProcessor
) -> None:
    two.sources["a"].max_tokens, two.sources["b"].epochs = 600, 2
    two = dataclasses.replace(two, num_streams=2, batch_rows=2, shuffle_buffer=8)
    stream = Stream(two, processor, seed=0)
    tokens: Counter[str] = Counter()
    longest = 0
    while samples := [sample for _ in range(2) for sample in stream.next_row().samples]:
        for sample in samples:
            tokens[sample.source] += sample.num_tokens
            longest = max(longest, sample.num_tokens)
    assert 600 <= tokens["a"] < 600 + 2 * longest and tokens["b"] > 600
    states = [state for name, state in stream.positions.items() if name != "settings"]
    assert [state["tokens"]["a"] >= 300 for state in states] == [True, True]
    assert sum(state["apart"]["a"][0] for state in states) > 0, "what waited was left out"


def test_the_streams_parts_of_a_budget_add_up_to_it() -> None:
    asked = Mixture(weights={"a": 1.0}, steps={"a": (0, None)}, tokens={"a": 1003}, batch_rows=1, num_streams=8)
    parts = [asked.budget("a", stream) for stream in range(8)]
    assert sum(part or 0 for part in parts) == 1003 and {125, 126} == set(parts)


# steps


def test_sources_start_and_stop_with_the_step_of_the_row_that_is_filled(
    two: DataConfig, processor: SailVLProcessor
) -> None:
    two.sources["a"].stop_step, two.sources["b"].start_step = 6, 3
    two = dataclasses.replace(two, num_streams=2, batch_rows=4, seq_length=60)
    stream = Stream(two, processor, seed=0)
    seen: dict[int, set[str]] = {}
    for _ in range(40):
        row = stream.next_row()
        seen.setdefault(row.index // 4, set()).update(sample.source for sample in row.samples)
    assert [seen[step] for step in range(3)] == [{"a"}] * 3 and "b" in seen[4]
    # one sample may wait in each buffer of each stream: two rows a step and stream take it along in the next step
    assert [seen[step] for step in range(7, 10)] == [{"b"}] * 3


def test_the_shares_that_are_asked_for_are_those_of_the_step(two: DataConfig) -> None:
    two.sources["a"].weight, two.sources["b"].start_step = 3.0, 10
    asked = mixture(two, shard_lists(two))
    assert asked.shares(9) == {"a": 1.0} and asked.shares(10) == {"a": 0.75, "b": 0.25}


def test_a_gap_between_the_steps_of_the_sources_is_refused(two: DataConfig) -> None:
    two.sources["a"].stop_step, two.sources["b"].start_step = 6, 7
    with pytest.raises(ValueError, match="none takes part at step 6, and 'b' starts at 7; let it start earlier"):
        opened(two)
    two.sources["b"].start_step = 6
    opened(two)


def test_exhausted_sources_before_a_later_start_are_an_error_once_nothing_waits(
    two: DataConfig, processor: SailVLProcessor
) -> None:
    two.sources["a"].epochs, two.sources["b"].start_step = 1, 1000
    two = dataclasses.replace(two, shuffle_buffer=8, pack_buffer=8)
    stream = Stream(two, processor, seed=0)
    keys: list[str] = []
    told = "stream 0 has no sample left at step .*: all sources that take part are exhausted, and 'b' starts at 1000"
    with pytest.raises(ValueError, match=told):
        while True:
            keys += [sample.key for sample in stream.next_row().samples]
    assert sorted(keys) == [f"{number:06d}" for number in range(40)], "what waited was trained on first"
    keys.clear()
    with pytest.raises(ValueError, match=told):
        for conversation, _ in PromptStream(two, processor, seed=0):
            keys.append(conversation.key)
    assert len(keys) == 40


def test_what_waits_bridges_the_steps_until_the_next_source_starts(two: DataConfig, processor: SailVLProcessor) -> None:
    two.sources["a"].epochs, two.sources["b"].start_step, two.sources["b"].epochs = 1, 4, 1
    two = dataclasses.replace(two, shuffle_buffer=40, pack_buffer=8)
    stream = Stream(two, processor, seed=0)
    sources = [sample.source for _ in range(40) for sample in stream.next_row().samples]
    assert Counter(sources) == {"a": 40, "b": 20}


def test_another_number_of_rows_a_step_is_refused_where_steps_make_the_order(
    two: DataConfig, processor: SailVLProcessor
) -> None:
    def resumed(config: DataConfig, **more: Any) -> None:
        stream = Stream(config, processor, seed=0)
        stream.next_row()
        Stream(dataclasses.replace(config, batch_rows=2, **more), processor, seed=0).load_state(stream.positions)

    resumed(two)
    two.sources["b"].start_step = 3
    with pytest.raises(ValueError, match="mix.batch_rows was 1 and is 2.*data.allow_mix_change=true"):
        resumed(two)
    resumed(two, allow_mix_change=True)


def test_a_run_with_limits_goes_on_anywhere_as_if_never_stopped(two: DataConfig, processor: SailVLProcessor) -> None:
    for number, shard in enumerate(shards(two, "a")):
        index.add_columns(shard, {"weight": [0.0, 1.5, 2.25, None, 1.0] * 2, "score": [float(number)] * 10})
    two.sources["a"].epochs, two.sources["a"].filter = 2.5, ["score != 2"]
    two.sources["b"].max_tokens, two.sources["b"].start_step = 900, 2
    two = dataclasses.replace(two, num_streams=2, batch_rows=2, shuffle_buffer=5, pack_buffer=4)

    def rows(stream: Stream) -> tuple[list[Any], list[Any]]:
        found, positions = [], []
        while sum(not row[1] for row in found[-2:]) < 2:
            row = stream.next_row()
            found.append([row.index, [(sample.source, sample.key) for sample in row.samples], row.position])
            positions.append(json.loads(json.dumps(stream.positions)))
        return found, positions

    whole, positions = rows(Stream(two, processor, seed=1))
    assert len(whole) > 12
    for stopped in random.Random(0).sample(range(len(whole) - 1), 8):
        again = Stream(two, processor, seed=1)
        again.load_state(positions[stopped])
        assert rows(again)[0] == whole[stopped + 1 :]


# weights and filters


def test_a_weight_shows_a_sample_that_often_an_epoch(two: DataConfig) -> None:
    weights = [0.0, 1.0, 2.0, 3.0, 0.5, 1.5, None, 1.0, 1.0, 1.0]
    for shard in shards(two, "a"):
        index.add_columns(shard, {"weight": weights})
    two.sources["a"].epochs, two.sources["b"].weight = 50, 0
    stream, ledger = opened(two)
    shown: Counter[int] = Counter()
    for _, key in rest(stream):
        shown[int(key) % 10] += 1
    epochs = 50 * 4
    assert [shown[place] / epochs for place in (0, 1, 2, 3, 6)] == [0, 1, 2, 3, 1]
    assert 0.4 < shown[4] / epochs < 0.6 and 1.4 < shown[5] / epochs < 1.6
    left_out, again, lost = ledger.apart["a"]
    assert 50 * 40 == shown.total() - again + left_out and lost == 0


def test_passes_keep_the_copies_of_a_sample_apart(two: DataConfig) -> None:
    for shard in shards(two, "a"):
        index.add_columns(shard, {"weight": [3.0] * 10})
    two.sources["a"].epochs, two.sources["b"].weight = 1, 0
    keys = [key for _, key in rest(opened(two)[0])]
    assert all(len(set(keys[start : start + 10])) == 10 for start in range(0, 120, 10))


def test_filtered_samples_are_left_out_and_counted_once_an_epoch(two: DataConfig) -> None:
    for shard in shards(two, "a"):
        index.add_columns(shard, {"score": [float(place) for place in range(10)], "language": ["en", "zh"] * 5})
    two.sources["a"].filter = ["score >= 4", "language == en"]
    two.sources["a"].epochs, two.sources["b"].weight = 2, 0
    stream, ledger = opened(two)
    assert {int(key) % 10 for _, key in rest(stream)} == {4, 6, 8}
    assert ledger.apart == {"a": [2 * 4 * 7, 0, 0]}
    assert {int(one.key) % 10 for one in held_out({"a": two.sources["a"]})} == {4, 6, 8}


@pytest.mark.parametrize("num_streams", [1, 3, 4, 8])
def test_filters_count_alike_whatever_the_streams(two: DataConfig, num_streams: int) -> None:
    for shard in shards(two, "a"):
        index.add_columns(shard, {"weight": [float(place % 3) for place in range(10)]})
    two.sources["a"].epochs, two.sources["b"].weight = 1, 0
    two = dataclasses.replace(two, num_streams=num_streams, batch_rows=num_streams)
    read, apart = 0, Counter[int]()
    for number in range(num_streams):
        stream, ledger = opened(two, number)
        read += len(rest(stream))
        apart.update(dict(enumerate(ledger.apart["a"])))
    assert (read, apart[0], apart[1]) == (4 * 9, 4 * 4, 4 * 3)


def test_a_filter_without_an_index_or_column_says_what_to_do(two: DataConfig) -> None:
    two.sources["a"].filter, two.sources["b"].weight = ["score >= 4"], 0
    with pytest.raises(ValueError, match=r"source 'a': filter=\['score >= 4'\] needs an index.*data index"):
        rest(opened(two)[0])
    for shard in shards(two, "a"):
        index.ensure_index(shard)
    with pytest.raises(ValueError, match="the index has no column 'score'"):
        rest(opened(two)[0])


def test_a_share_whose_shards_were_all_left_out_says_so(two: DataConfig, tmp_path: Path) -> None:
    for name in ("first.tar", "second.tar"):
        (tmp_path / name).write_bytes(b"\x1f\x8b compressed")
    source = SourceConfig(shards=f"{tmp_path}/{{first,second}}.tar", on_bad_shard="skip", max_bad=1000)
    with pytest.raises(ValueError, match="holds no sample, since on_bad_shard=skip left its shards out; .*is gzip"):
        rest(opened(dataclasses.replace(two, sources={"a": source}))[0], 1)


def test_a_filter_that_leaves_a_share_empty_is_an_error(two: DataConfig) -> None:
    for shard in shards(two, "a"):
        index.add_columns(shard, {"score": [0.0] * 10})
    two.sources["a"].filter, two.sources["b"].weight = ["score > 1"], 0
    with pytest.raises(ValueError, match="holds no sample; 40 are left out by its filter .* filter less"):
        rest(opened(two)[0], 1)


def test_weights_that_leave_a_share_empty_are_named(two: DataConfig) -> None:
    for shard in shards(two, "a"):
        index.add_columns(shard, {"weight": [0.0] * 10})
    two.sources["b"].weight = 0
    told = "source 'a': the share of stream 0 in its 4 shards holds no sample; 40 have weight 0 in the indexes' column "
    with pytest.raises(ValueError, match=told + "`weight`: .*data.sources.a.weight=0"):
        rest(opened(two)[0], 1)


@pytest.mark.parametrize("weight", [-1.0, 1e9])
def test_a_weight_that_is_none_is_refused(two: DataConfig, weight: float) -> None:
    for shard in shards(two, "a"):
        index.add_columns(shard, {"weight": [weight] * 10})
    two.sources["b"].weight = 0
    with pytest.raises(ValueError, match="weights must be from 0 to 1000"):
        rest(opened(two)[0], 1)


def test_weights_that_changed_within_a_shard_are_refused_on_resume(two: DataConfig) -> None:
    for shard in shards(two, "a"):
        index.add_columns(shard, {"weight": [2.0] * 10})
    two.sources["b"].weight = 0
    stream, _ = opened(two)
    rest(stream, 5)
    state = json.loads(json.dumps(stream.state()))
    for shard in shards(two, "a"):
        index.add_columns(shard, {"weight": [1.0] * 10})
    again, _ = opened(two)
    again.load_state(state)
    with pytest.raises(ValueError, match="the data is not what it was.*weights or filtered samples were"):
        rest(again, 1)


# sizes


def test_temperature_draws_by_size(two: DataConfig, tmp_path: Path) -> None:
    two.temperature = 2.0
    two.sources["a"].size, two.sources["b"].size = 900, 100
    assert mixture(two, shard_lists(two)).shares(0) == pytest.approx({"a": 0.75, "b": 0.25})
    two.sources["a"].size = None
    (tmp_path / "a" / "dataset.json").write_text(json.dumps({"samples": 400, "shards": 4}))
    assert mixture(two, shard_lists(two)).shares(0) == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    two.sources["b"].weight = 2.0
    assert mixture(two, shard_lists(two)).shares(0) == pytest.approx({"a": 0.5, "b": 0.5})


@pytest.mark.parametrize("text", ['{"samples": Infinity, "shards": 4}', "[" * 100_000, '{"samples": 1}', "[]", "{"])
def test_a_dataset_json_that_makes_no_sense_tells_no_size(two: DataConfig, tmp_path: Path, text: str) -> None:
    (tmp_path / "a" / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match="does not tell it"):
        dataset_size("a", shard_lists(two)["a"])


def test_a_size_that_nothing_tells_is_an_error_with_the_remedy(two: DataConfig, tmp_path: Path) -> None:
    two.temperature = 1.0
    with pytest.raises(ValueError, match=r"source 'a': data.temperature needs its size.*data index.*sources.a.size"):
        mixture(two, shard_lists(two))
    (tmp_path / "a" / "dataset.json").write_text(json.dumps({"samples": 400, "shards": 40}))
    with pytest.raises(ValueError, match="dataset.json is of 40 shards, and 4 are named; give data.sources.a.size"):
        mixture(two, shard_lists(two))


# changing the mixture


def test_whole_numbers_of_python_code_are_those_of_a_config(two: DataConfig, processor: SailVLProcessor) -> None:
    """2 and 2.0 ask for the same, and are one order."""

    def settings(number: float) -> dict[str, Any]:
        source = dataclasses.replace(two.sources["a"], epochs=number, fps=number, weight=number)
        config = dataclasses.replace(two, sources={"a": source})
        return order_settings(config, shard_lists(config), processor, seed=0)

    assert settings(2) == settings(2.0) != settings(3)


def test_a_mixture_changes_on_resume_only_when_asked_and_says_so(
    two: DataConfig, processor: SailVLProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    first = dataclasses.replace(two, sources={"a": two.sources["a"]})
    stream = Stream(first, processor, seed=0)
    for _ in range(3):
        stream.next_row()
    positions = json.loads(json.dumps(stream.positions))
    changed = dataclasses.replace(two, sources={"a": dataclasses.replace(two.sources["a"], weight=0.5), **two.sources})
    changed.sources["a"] = dataclasses.replace(two.sources["a"], weight=0.5)
    with pytest.raises(ValueError, match=r"mix.a was .*weight=1.*is.*weight=0.5.*data.allow_mix_change=true"):
        Stream(changed, processor, seed=0).load_state(positions)
    asked = Stream(dataclasses.replace(changed, allow_mix_change=True), processor, seed=0)
    asked.load_state(positions)
    assert "the mixture goes on changed: mix.a was" in caplog.text and "mix.b was None" in caplog.text
    sources = {sample.source for _ in range(12) for sample in asked.next_row().samples}
    assert sources == {"a", "b"}
    gone = dataclasses.replace(changed, sources={"b": two.sources["b"]}, allow_mix_change=True)
    with pytest.raises(ValueError, match="sources.a was .* and is None.*a source that is to end gets a stop_step"):
        Stream(gone, processor, seed=0).load_state(positions)
    longer = dataclasses.replace(changed, seq_length=200, allow_mix_change=True)
    with pytest.raises(ValueError, match="seq_length was 160 and is 200"):
        Stream(longer, processor, seed=0).load_state(positions)
