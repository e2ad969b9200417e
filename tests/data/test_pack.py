"""Mixing, shuffling and packing of one stream."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.interleave import budget_of, candidates, shard_lists
from sail_train.data.measure import Measure
from sail_train.data.fill import best_fit
from sail_train.data.pack import Pack, Packed
from sail_train.data.shuffle import Shuffle
from sail_train.processor.processor import SailVLProcessor


def shuffle_of(config: DataConfig, *, seed: int = 0) -> Shuffle:
    return candidates(config, shard_lists(config), seed=seed, stream=0, ledger=budget_of(config).ledger())


def two_sources(tmp_path: Path, make: SimpleNamespace, **more: Any) -> DataConfig:
    sources = {
        name: SourceConfig(shards=make.shards(tmp_path, name, range(start, start + 40)), weight=weight)
        for name, start, weight in (("a", 0, 3.0), ("b", 100, 1.0))
    }
    return DataConfig(sources=sources, **{"num_streams": 1, "shuffle_buffer": 1, **more})


def test_sources_are_mixed_by_weight_in_an_order_the_seed_fixes(tmp_path: Path, make: SimpleNamespace) -> None:
    config = two_sources(tmp_path, make)
    drawn = [candidate.raw.source for candidate in make.take(shuffle_of(config), 2000)]
    assert abs(Counter(drawn)["a"] / 2000 - 0.75) < 0.03
    assert drawn[:200] == [candidate.raw.source for candidate in make.take(shuffle_of(config), 200)]
    assert drawn[:200] != [candidate.raw.source for candidate in make.take(shuffle_of(config, seed=1), 200)]
    config.sources = dict(reversed(config.sources.items()))
    assert drawn[:200] == [candidate.raw.source for candidate in make.take(shuffle_of(config), 200)]


def test_a_source_without_weight_is_not_even_opened(tmp_path: Path, make: SimpleNamespace) -> None:
    config = two_sources(tmp_path, make)
    config.sources["c"] = SourceConfig(shards="/nowhere/*.tar", weight=0.0)
    assert {candidate.raw.source for candidate in make.take(shuffle_of(config), 50)} == {"a", "b"}
    for source in config.sources.values():
        source.weight = 0.0
    with pytest.raises(ValueError, match=r"no source has a weight above 0 \(sources: a, b, c\)"):
        shard_lists(config)
    with pytest.raises(ValueError, match="none are given"):
        shard_lists(DataConfig())


def test_shuffling_moves_samples_and_loses_none(tmp_path: Path, make: SimpleNamespace) -> None:
    plain = two_sources(tmp_path, make)
    shuffled = two_sources(tmp_path / "again", make, shuffle_buffer=20)
    before = [candidate.raw.key for candidate in make.take(shuffle_of(plain), 220)]
    after = [candidate.raw.key for candidate in make.take(shuffle_of(shuffled), 200)]
    assert before[:200] != after
    left = Counter(before[:219]) - Counter(after)
    assert left.total() == 19 and not Counter(after) - Counter(before[:219])


def packs(config: DataConfig, processor: SailVLProcessor) -> Pack:
    ledger = budget_of(config).ledger()
    waiting = candidates(config, shard_lists(config), seed=0, stream=0, ledger=ledger)
    return Pack(waiting, Measure(config, processor, seed=0), config, ledger=ledger)


def test_rows_hold_their_capacity_in_tokens_and_patches_and_are_full(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    config = two_sources(tmp_path, make, seq_length=256, max_patches=24, pack_buffer=16)
    rows = make.take(packs(config, processor), 60)
    tokens = [sum(packed.num_tokens for packed in row) for row in rows]
    patches = [sum(packed.num_patches for packed in row) for row in rows]
    assert max(tokens) <= 256 and max(patches) <= 24
    assert np.mean(tokens) > 0.93 * 256


def test_no_sample_waits_longer_than_the_buffer_is_long(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    config = two_sources(tmp_path, make, seq_length=160, pack_buffer=6)
    order = {json.dumps(c.place): number for number, c in enumerate(make.take(shuffle_of(config), 600))}
    taken = 0
    for row in make.take(packs(config, processor), 80):
        oldest = min(set(range(taken + 100)) & set(order.values()))
        assert order[json.dumps(row[0].place)] == oldest
        for packed in row:
            del order[json.dumps(packed.place)]
            taken += 1


def test_the_longest_that_fits_is_chosen_and_the_first_of_equals() -> None:
    def packed(tokens: int, patches: int = 0) -> Packed:
        return Packed(encoded=None, shard="", num_tokens=tokens, num_patches=patches, place=[])  # type: ignore[arg-type]

    waiting = [packed(5), packed(9, 50), packed(7), packed(7), packed(12)]
    assert best_fit(waiting, 10, 40) == 2
    assert best_fit(waiting, 10, 50) == 1
    assert best_fit(waiting, 4, 50) is None


def test_packing_goes_on_from_any_row(tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor) -> None:
    config = two_sources(tmp_path, make, seq_length=200, pack_buffer=7, shuffle_buffer=9)
    pack = packs(config, processor)
    states, rows = [pack.state()], []
    for _ in range(30):
        rows.append([packed.place for packed in next(pack)])
        states.append(json.loads(json.dumps(pack.state())))
    for stopped in (0, 1, 7, 29):
        again = packs(config, processor)
        again.load_state(states[stopped])
        assert again.state() == states[stopped]
        assert [[packed.place for packed in row] for row in make.take(again, 30 - stopped)] == rows[stopped:]


def test_a_waiting_sample_that_cannot_be_measured_any_more_is_refused(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    config = two_sources(tmp_path, make, seq_length=200)
    pack = packs(config, processor)
    next(pack)
    config.seq_length = 10
    with pytest.raises(ValueError, match="the data is not what it was.*too_long"):
        packs(config, processor).load_state(pack.state())
