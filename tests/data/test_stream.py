"""The whole stream: its order whatever the ranks, resuming anywhere, bad samples, and closing."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.quarantine import TooManyBadSamples
from sail_train.data.stream import Stream
from sail_train.processor.processor import SailVLProcessor
from sail_train.types import IGNORE_INDEX, Batch, Row, Step

TENSORS = ("input_ids", "labels", "position_ids", "cu_seqlens", "patches", "grids")


def with_values(config: DataConfig, **values: Any) -> DataConfig:
    return dataclasses.replace(config, **values)


def row_print(row: Row) -> tuple[Any, ...]:
    """All of a row: order, keys, token ids, labels, image bytes and quarantine."""
    samples = [
        (sample.source, sample.key, sample.input_ids.tobytes(), sample.labels.tobytes(), sample.grids, sample.visuals)
        for sample in row.samples
    ]
    return row.index, samples, row.quarantined


def batch_print(batch: Batch) -> tuple[Any, ...]:
    return (batch.keys, batch.sources, *(vars(batch)[name].numpy().tobytes() for name in TENSORS))


def step_print(step: Step) -> tuple[Any, ...]:
    return [batch_print(batch) for batch in step.batches], step.quarantined, step.fill, step.positions


def over_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


# order


@pytest.mark.parametrize("world", [2, 4])
def test_the_rows_of_a_run_do_not_depend_on_the_number_of_ranks(
    mixture: DataConfig, processor: SailVLProcessor, world: int
) -> None:
    alone = Stream(mixture, processor, seed=3)
    expected = [row_print(alone.next_row()) for _ in range(60)]
    found = []
    for rank in range(world):
        stream = Stream(mixture, processor, seed=3, rank=rank, world=world)
        found += [row_print(stream.next_row()) for _ in range(60 // world)]
    assert sorted(found, key=lambda row: row[0]) == expected
    assert [row[0] for row in expected] == list(range(60))
    reasons = {record["reason"] for row in expected for record in row[2]}
    assert reasons == {"bad_json", "refused_file", "too_long"}


def test_a_step_holds_the_same_samples_whatever_the_micro_batch_and_the_ranks(
    mixture: DataConfig, processor: SailVLProcessor
) -> None:
    def samples(steps: list[Step]) -> list[Any]:
        return sorted(
            (source, key) for step in steps for b in step.batches for source, key in zip(b.sources, b.keys, strict=True)
        )

    whole = Stream(mixture, processor, seed=0)
    pieces = Stream(with_values(mixture, micro_batch=2), processor, seed=0)
    ranks = [Stream(mixture, processor, seed=0, rank=rank, world=2) for rank in range(2)]
    assert (whole.accumulation, pieces.accumulation, ranks[0].accumulation) == (4, 2, 2)
    for _ in range(8):
        step = next(whole)
        assert len(step.batches) == 4
        assert samples([step]) == samples([next(pieces)]) == samples([next(rank) for rank in ranks])


def test_another_seed_gives_another_order(mixture: DataConfig, processor: SailVLProcessor) -> None:
    first, second = (row_print(Stream(mixture, processor, seed=seed).next_row()) for seed in (0, 1))
    assert first != second


def test_ranks_that_cannot_share_rows_are_refused_with_those_that_can(
    mixture: DataConfig, processor: SailVLProcessor
) -> None:
    with pytest.raises(ValueError, match=r"3 ranks cannot share num_streams=4 .*ranks that fit: 1, 2, 4$"):
        Stream(mixture, processor, seed=0, world=3)
    with pytest.raises(ValueError, match=r"batch_rows=4 by ranks x micro_batch=2 equally.*fit: 1, 2$"):
        Stream(with_values(mixture, micro_batch=2), processor, seed=0, world=4)


# resuming


def test_resuming_after_any_row_gives_exactly_the_rows_that_would_have_come(
    mixture: DataConfig, processor: SailVLProcessor
) -> None:
    stream = Stream(mixture, processor, seed=1)
    total = 120  # several epochs of both sources
    rows, positions = [], []
    for _ in range(total):
        row = stream.next_row()
        rows.append(row_print(row))
        positions.append(over_json(stream.positions))
        assert positions[-1][str(row.index % 4)] == over_json(row.position)
    for stopped in random.Random(0).sample(range(total - 1), 12):
        again = Stream(mixture, processor, seed=1)
        again.load_state(positions[stopped])
        assert [row_print(again.next_row()) for _ in range(min(20, total - 1 - stopped))] == rows[stopped + 1 :][:20]


def test_every_bad_sample_of_an_epoch_is_written_down_once(mixture: DataConfig, processor: SailVLProcessor) -> None:
    rows = [Stream(mixture, processor, seed=1).next_row()]
    stream = Stream(mixture, processor, seed=1)
    rows = [stream.next_row() for _ in range(60)]
    found = [(record["key"], record["reason"]) for row in rows for record in row.quarantined]
    assert set(found) == {("b", "bad_json"), ("c", "refused_file"), ("d", "too_long")}


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 4), (4, 1), (1, 2)])
def test_steps_are_the_same_after_a_resume_on_other_ranks(
    mixture: DataConfig, processor: SailVLProcessor, before: int, after: int
) -> None:
    alone = Stream(mixture, processor, seed=2)
    expected = [step_print(next(alone)) for _ in range(16)]
    positions: dict[str, Any] = {}
    for rank in range(before):
        stream = Stream(mixture, processor, seed=2, rank=rank, world=before)
        for _ in range(7):
            step = next(stream)
        positions.update(over_json(step.positions))
    assert positions == over_json(expected[6][3])
    resumed = [Stream(mixture, processor, seed=2, rank=rank, world=after) for rank in range(after)]
    for stream in resumed:
        stream.load_state(positions)
    for wanted in expected[7:]:
        steps = [next(stream) for stream in resumed]
        assert sorted(batch_print(b) for step in steps for b in step.batches) == sorted(wanted[0])
        records = [json.dumps(record) for step in steps for record in step.quarantined]
        assert sorted(records) == sorted(json.dumps(record) for record in wanted[1])
        merged = {key: state for step in steps for key, state in step.positions.items()}
        assert merged == wanted[3]


def test_the_positions_before_the_first_step_are_those_of_the_beginning(
    mixture: DataConfig, processor: SailVLProcessor
) -> None:
    stream = Stream(mixture, processor, seed=2)
    first, start = step_print(next(stream)), Stream(mixture, processor, seed=2).positions
    stream.load_state(over_json(start))
    assert stream.positions == start
    assert step_print(next(stream)) == first


def test_positions_are_those_of_the_step_given_out_not_of_those_prefetched(
    mixture: DataConfig, processor: SailVLProcessor
) -> None:
    plain = Stream(mixture, processor, seed=5)
    expected = [step_print(next(plain)) for _ in range(8)]
    with Stream(with_values(mixture, prefetch=3, decode_threads=2), processor, seed=5) as ahead:
        for wanted in expected[:4]:
            assert step_print(next(ahead)) == wanted
            assert ahead.positions == wanted[3]
        ahead.load_state(over_json(expected[1][3]))
        assert [step_print(next(ahead)) for _ in range(6)] == expected[2:]


def test_a_position_of_another_run_is_refused_with_what_changed(
    mixture: DataConfig, processor: SailVLProcessor, make: SimpleNamespace, tmp_path: Path
) -> None:
    positions = next(Stream(mixture, processor, seed=5)).positions
    with pytest.raises(ValueError, match="seed was 5 and is 6"):
        Stream(mixture, processor, seed=6).load_state(positions)
    with pytest.raises(ValueError, match="seq_length was 160 and is 170"):
        Stream(with_values(mixture, seq_length=170), processor, seed=5).load_state(positions)
    smaller = SailVLProcessor(processor.tokenizer, image={"max_pixels": 56 * 56})
    with pytest.raises(ValueError, match="processor was "):
        Stream(mixture, smaller, seed=5).load_state(positions)
    make.tar(tmp_path / "second" / "znew.tar", [("a.json", make.json())])
    with pytest.raises(ValueError, match=r"sources.second was '3 shards .* and is '4 shards .*restore these"):
        Stream(mixture, processor, seed=5).load_state(positions)


def test_a_position_in_a_shard_that_was_rewritten_is_refused(
    mixture: DataConfig, processor: SailVLProcessor, make: SimpleNamespace, tmp_path: Path
) -> None:
    positions = next(Stream(mixture, processor, seed=5)).positions
    make.tar(tmp_path / "second" / "zbad.tar", [("a.json", make.json())])
    with pytest.raises(ValueError, match="the data is not what it was.*zbad.tar': no sample at byte"):
        Stream(mixture, processor, seed=5).load_state(positions)


def test_a_position_without_all_ranks_is_refused(mixture: DataConfig, processor: SailVLProcessor) -> None:
    positions = next(Stream(mixture, processor, seed=5, rank=0, world=2)).positions
    with pytest.raises(ValueError, match=r"no position for streams \[1, 3\]; give the positions of all ranks"):
        Stream(mixture, processor, seed=5).load_state(positions)


def test_data_moved_to_another_folder_is_the_same_data(
    mixture: DataConfig, processor: SailVLProcessor, tmp_path: Path
) -> None:
    stream = Stream(mixture, processor, seed=5)
    positions, expected = next(stream).positions, batch_print(next(stream).batches[0])
    (tmp_path / "first").rename(tmp_path / "moved")
    mixture.sources["first"].shards = str(tmp_path / "moved" / "*.tar")
    moved = Stream(mixture, processor, seed=5)
    moved.load_state(positions)
    assert batch_print(next(moved).batches[0]) == expected


# bad samples


def test_broken_pixels_leave_their_row_and_are_written_down_with_the_step(
    mixture: DataConfig, processor: SailVLProcessor
) -> None:
    stream = Stream(mixture, processor, seed=0)
    records: list[dict[str, Any]] = []
    steps = 0
    while not any(record["reason"] == "image_undecodable" for record in records):
        step = next(stream)
        steps += 1
        records += step.quarantined
    last = records[-1]
    assert last["key"] == "a" and last["shard"].endswith("zbad.tar") and last["reason"] == "image_undecodable"
    undecoded = Stream(mixture, processor, seed=0)
    rows = [undecoded.next_row() for _ in range(4 * steps)][-4:]
    kept = sorted(sample.key for row in rows for sample in row.samples if sample.key != "a")
    assert sorted(key for batch in step.batches for key in batch.keys) == kept
    counts = [state["counts"]["second"][1] for name, state in step.positions.items() if name != "settings"]
    assert sum(counts) == len(records), "the position after the step counts what the step lost"


def test_a_source_over_its_budget_stops_the_run_in_the_consumer(
    mixture: DataConfig, processor: SailVLProcessor
) -> None:
    mixture.sources["second"].max_bad = 2
    stream = Stream(with_values(mixture, prefetch=2), processor, seed=0)
    with pytest.raises(TooManyBadSamples, match="source 'second': 3 of .*zbad.tar"):
        for _ in range(100):
            next(stream)
    stream.close()


def test_a_source_of_bad_samples_alone_stops_instead_of_searching_for_ever(
    tmp_path: Path, processor: SailVLProcessor, make: SimpleNamespace
) -> None:
    shard = make.tar(tmp_path / "a.tar", [(f"{number}.json", b"{") for number in range(50)])
    source = SourceConfig(shards=str(shard), max_bad=0.9)
    config = DataConfig(sources={"s": source}, num_streams=1, batch_rows=1, max_bad_in_a_row=30, prefetch=0)
    with pytest.raises(TooManyBadSamples, match="31 bad samples in a row"):
        next(Stream(config, processor, seed=0))


def test_a_micro_step_whose_samples_all_failed_still_comes(
    tmp_path: Path, processor: SailVLProcessor, make: SimpleNamespace
) -> None:
    shard = make.tar(tmp_path / "a.tar", [("a.0.png", make.broken_image()), ("a.json", make.json(images=1))])
    source = SourceConfig(shards=str(shard), max_bad=100)
    config = DataConfig(
        sources={"s": source}, seq_length=64, num_streams=1, batch_rows=1, pack_buffer=1, shuffle_buffer=1, prefetch=0
    )
    (batch,) = next(Stream(config, processor, seed=0)).batches
    assert batch.labels.tolist() == [IGNORE_INDEX] and batch.cu_seqlens.tolist() == [0, 1]
    assert batch.input_ids.tolist() == [processor.token_ids["pad"]]


def test_a_missing_shard_is_named_before_the_first_step(mixture: DataConfig, processor: SailVLProcessor) -> None:
    mixture.sources["second"].shards = [mixture.sources["second"].shards, "/data/gone-{000..003}.tar"]  # type: ignore[list-item]
    with pytest.raises(ValueError, match="source 'second': shard '/data/gone-000.tar' does not exist"):
        Stream(mixture, processor, seed=0)


def test_text_that_looks_like_control_tokens_stays_text(
    tmp_path: Path, processor: SailVLProcessor, make: SimpleNamespace
) -> None:
    shard = make.tar(tmp_path / "a.tar", [("a.json", make.json("<IMG_CONTEXT><|im_end|><img>"))])
    config = DataConfig(sources={"s": SourceConfig(shards=str(shard))}, seq_length=64, num_streams=1, batch_rows=1)
    with Stream(config, processor, seed=0) as stream:
        (batch,) = next(stream).batches
    assert processor.image_token_id not in batch.input_ids.tolist()


# steps


def test_fill_is_the_used_share_of_the_capacity(mixture: DataConfig, processor: SailVLProcessor) -> None:
    stream = Stream(mixture, processor, seed=0)
    fills = []
    for _ in range(20):
        step = next(stream)
        fills.append(step.fill)
        assert step.fill == sum(int(batch.cu_seqlens[-1]) for batch in step.batches) / (4 * 160)
    assert np.mean(fills) > 0.8


def test_a_closed_stream_leaves_no_thread_and_says_so(mixture: DataConfig, processor: SailVLProcessor) -> None:
    stream = Stream(with_values(mixture, prefetch=2, decode_threads=2), processor, seed=0)
    next(stream)
    stream.close()
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("data-prefetch", "ThreadPool"))]
    with pytest.raises(ValueError, match="the stream is closed"):
        next(stream)


def test_a_position_is_small(mixture: DataConfig, processor: SailVLProcessor) -> None:
    step = next(Stream(mixture, processor, seed=0))
    waiting = 4 * (8 + 5)
    assert len(json.dumps(step.positions)) < 2000 + 4 * 400 + 40 * waiting
