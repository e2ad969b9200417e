"""Mixing, shuffling and packing of one stream."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sail_train.data.buffered import Buffered
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.fill import best_fit, pack_lengths, subset, subset_sum
from sail_train.data.interleave import budget_of, candidates, shard_lists
from sail_train.data.measure import Measure
from sail_train.data.pack import Pack, Packed
from sail_train.data.reader import Reader
from sail_train.data.shuffle import Shuffle
from sail_train.processor.processor import SailVLProcessor
from sail_train.types import Encoded, Visual


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
    buffered = Buffered(config, streams=1, warns=True)
    return Pack(waiting, Measure(config, processor, seed=0), config, ledger=ledger, buffered=buffered)


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


@pytest.mark.parametrize("packing", ["best_fit", "subset"])
def test_packing_goes_on_from_any_row(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor, packing: str
) -> None:
    config = two_sources(tmp_path, make, seq_length=200, pack_buffer=7, shuffle_buffer=9, packing=packing)
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


# which samples make a row


@dataclass(frozen=True)
class Item:
    num_tokens: int
    num_patches: int = 0


def test_a_subset_is_the_one_that_comes_closest_and_holds_the_longest_waiting() -> None:
    assert subset([Item(5), Item(9), Item(7), Item(4)], 16, 0) == [1, 2]
    assert subset([Item(5), Item(5), Item(5)], 10, 0) == [0, 1]
    assert subset([Item(50)], 10, 0) == [] == subset([], 10, 0)
    few = [Item(6, 60), Item(6, 1), Item(4, 50), Item(4, 2)]
    assert subset(few, 10, 110) == [0, 2] and subset(few, 10, 10) == [1, 3]
    assert subset(few, 10, 100) is None, "the longest waiting have too many patches together"


def test_a_subset_sum_is_the_largest_there_is() -> None:
    rng = random.Random(0)
    for _ in range(50):
        lengths, capacity = [rng.randint(1, 40) for _ in range(8)], rng.randint(0, 120)
        sums = [sum(chosen) for size in range(9) for chosen in itertools.combinations(lengths, size)]
        found = subset_sum(lengths, capacity)
        assert sum(lengths[place] for place in found) == max(total for total in sums if total <= capacity)


def mixed(count: int) -> tuple[list[int], list[int]]:
    """Lengths and patches as in facts/performance.md: 15% text, 35% images of 256 tokens, 30% native, long texts."""
    rng = np.random.default_rng(0)
    lengths, patches = [], []
    for kind in rng.random(count):
        seen = 256 if 0.15 <= kind < 0.5 else int(rng.integers(200, 1600)) if 0.5 <= kind < 0.8 else 0
        told = (50, 800) if kind < 0.15 else (20, 300) if kind < 0.8 else (800, 5000) if kind < 0.95 else (2000, 8192)
        lengths.append(seen + int(rng.integers(*told)))
        patches.append(4 * seen)
    return lengths, patches


def test_rows_of_8k_tokens_are_full_as_a_run_is_set_up_and_nothing_is_cut() -> None:
    lengths, patches = mixed(4000)
    config = DataConfig(seq_length=8192, max_patches=32768)
    rows = checked_rows(lengths, patches, config)
    # of the whole: the last rows are of what is left
    assert sum(lengths) / len(rows) / 8192 >= 0.995
    best_fit = dataclasses.replace(config, packing="best_fit", pack_buffer=256)
    assert len(rows) < len(checked_rows(lengths, patches, best_fit))


def checked_rows(lengths: list[int], patches: list[int], config: DataConfig) -> list[list[int]]:
    """`pack_lengths`, each sample in one row and no row over its limits."""
    rows = pack_lengths(lengths, patches, config)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert max(sum(lengths[number] for number in row) for row in rows) <= config.seq_length
    assert max(sum(patches[number] for number in row) for row in rows) <= config.max_patches
    return rows


@pytest.mark.parametrize("packing", ["best_fit", "subset"])
def test_a_row_may_hold_more_samples_than_wait_at_once(packing: str) -> None:
    """Short texts in long rows: what waits is a small part of a row."""
    lengths = [7] * 1000
    rows = checked_rows(lengths, [0] * 1000, DataConfig(seq_length=700, pack_buffer=6, packing=packing))
    assert [len(row) for row in rows] == [100] * 10


@pytest.mark.parametrize("share", [0.5, 0.75, 1.0])
def test_where_patches_bind_too_rows_are_as_full_as_by_best_fit(share: float) -> None:
    lengths, patches = mixed(4000)
    config = DataConfig(seq_length=8192, max_patches=int(share * 4 * 8192), pack_buffer=64)
    by_best_fit = checked_rows(lengths, patches, dataclasses.replace(config, packing="best_fit"))
    assert len(checked_rows(lengths, patches, config)) <= 1.001 * len(by_best_fit)


def test_sets_with_too_many_patches_are_not_searched_again_after_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search takes as long as the room is large; 128 samples make a row."""
    rooms: list[int] = []

    def never(waiting: object, tokens: int, patches: int) -> None:
        rooms.append(tokens)

    monkeypatch.setattr("sail_train.data.fill.subset", never)
    config = DataConfig(seq_length=1024, pack_buffer=256)
    assert [len(row) for row in checked_rows([8] * 128, [1] * 128, config)] == [128]
    assert len(rooms) <= 9 and all(after <= before / 2 for before, after in itertools.pairwise(rooms))


def test_samples_of_all_lengths_leave_nearly_in_the_order_in_which_they_came() -> None:
    """A buffer of 256 moves a sample by some ten places: of sets that fill a row, the longest waiting are taken."""
    lengths, patches = mixed(4000)
    rows = checked_rows(lengths, patches, DataConfig(seq_length=8192, max_patches=32768, pack_buffer=256))
    moved = [abs(number - place) for place, number in enumerate(number for row in rows for number in row)]
    assert np.mean(moved) < 32


@pytest.mark.parametrize("packing", ["best_fit", "subset"])
@pytest.mark.parametrize(("max_wait", "wanted"), [(None, 12), (8, 9), (3, 7)])
def test_a_long_sample_is_forced_in_after_a_bounded_wait(packing: str, max_wait: int | None, wanted: int) -> None:
    """Samples of 60 of 100 tokens among pairs of 50, which fill rows better and would be preferred for ever.

    12 samples wait and 1.75 leave with each row: nobody waits longer than 7 rows where all come in turn.
    """
    lengths = [60 if number % 7 == 0 else 50 for number in range(1400)]
    config = DataConfig(seq_length=100, pack_buffer=12, packing=packing, max_wait=max_wait)
    rows = pack_lengths(lengths, [0] * 1400, config)
    assert sorted(number for row in rows for number in row) == list(range(1400))
    row_of = {number: place for place, row in enumerate(rows) for number in row}
    drawn = 0
    entered: dict[int, int] = {}  # the row for which a sample came into the buffer, at the latest
    for place, row in enumerate(rows):
        drawn = min(1400, drawn + len(row) if place else 12 + len(row))
        entered |= {number: place for number in range(drawn) if number not in entered}
    waits = [row_of[number] - entered[number] for number in range(1400)]
    assert max(waits) <= wanted


def test_waiting_is_part_of_the_position(tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor) -> None:
    config = two_sources(tmp_path, make, seq_length=200, pack_buffer=7, max_wait=2, packing="subset")
    pack = packs(config, processor)
    make.take(pack, 9)
    state = json.loads(json.dumps(pack.state()))
    assert any(state["waited"])
    rest = [[packed.place for packed in row] for row in make.take(pack, 9)]
    again = packs(config, processor)
    again.load_state(state)
    assert [[packed.place for packed in row] for row in make.take(again, 9)] == rest


def test_a_position_of_another_packing_or_of_none_that_is_named_is_refused(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    config = two_sources(tmp_path, make, seq_length=200)
    positions = Reader(config, processor, seed=0, numbers=[0]).positions()
    Reader(config, processor, seed=0, numbers=[0]).load_state(positions)
    changed: dict[str, Any] = {"packing": "best_fit", "max_wait": 3, "overlong": "split"}
    for name, value in changed.items():
        other = dataclasses.replace(config, **{name: value})
        with pytest.raises(ValueError, match=f"cannot be continued: {name} was .* and is {value!r}; restore"):
            Reader(other, processor, seed=0, numbers=[0]).load_state(positions)
    # saved before packing was named, when it was best_fit where nothing was said
    del positions["settings"]["packing"]
    with pytest.raises(ValueError, match="packing was None and is 'subset'"):
        Reader(config, processor, seed=0, numbers=[0]).load_state(positions)


# too long


def talk(turns: int, *, system: bool, words: int = 12) -> bytes:
    messages = [{"role": "system", "content": "red"}] if system else []
    for number in range(turns):
        messages += [{"role": "user", "content": f"what {number}"}, {"role": "assistant", "content": "blue " * words}]
    return json.dumps({"messages": messages}).encode()


def long_talks(tmp_path: Path, make: SimpleNamespace, **more: Any) -> DataConfig:
    image = json.loads(talk(6, system=False))
    image["messages"][0]["content"] = [{"type": "image"}, {"type": "text", "text": "what"}]
    files = [
        ("a.json", talk(6, system=True)),
        ("b.json", talk(1, system=False, words=150)),
        ("c.json", talk(1, system=False)),
        ("d.0.png", make.image(1)),
        ("d.json", json.dumps(image).encode()),
    ]
    source = SourceConfig(shards=str(make.tar(tmp_path / "long.tar", files)), max_bad=1000)
    return DataConfig(sources={"s": source}, seq_length=100, num_streams=1, shuffle_buffer=1, pack_buffer=3, **more)


def test_a_conversation_that_is_too_long_is_split_between_turns_only_where_asked(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    refused = {
        sample.encoded.key for row in make.take(packs(long_talks(tmp_path, make), processor), 4) for sample in row
    }
    assert refused == {"c"}
    config = long_talks(tmp_path, make, overlong="split")
    pack = packs(config, processor)
    rows = make.take(pack, 8)
    pieces = {sample.encoded.key: sample.encoded for row in rows for sample in row}
    assert {"a#0", "a#1", "c"} <= set(pieces) and not {"b", "d"} & {key.partition("#")[0] for key in pieces}
    of_a = [piece for key, piece in sorted(pieces.items()) if key.startswith("a#")]
    texts = [processor.decode(piece.input_ids) for piece in of_a]
    assert all("red" in text.partition("what")[0] for text in texts), "each piece has the system's message"
    assert [text.count("blue") % 12 for text in texts] == [0] * len(texts), "whole turns"
    assert sum(text.count("what") for text in texts) == 6 and all(piece.num_tokens <= 100 for piece in of_a)
    states = [json.loads(json.dumps(pack.state())) for _ in make.take(pack, 6)]
    state = next(state for state in states if any(isinstance(place[0], list) for place in state["pack"]))
    again = packs(config, processor)
    again.load_state(state)
    assert again.state() == state


# memory


def seen(size: int) -> Encoded:
    """A sample of 2 tokens and an image of so many bytes."""
    visual = Visual(kind="image", data=bytes(size), grids=())
    ids = np.zeros(2, np.int32)
    return Encoded(key="", source="", input_ids=ids, labels=ids, visuals=(visual,))


def warnings_of(buffered: Buffered, sizes: Iterable[int], caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """(number of the sample after which it was said, what)."""
    told = []
    for number, size in enumerate(sizes):
        buffered.add(seen(size))
        buffered.check()
        told += [(number, record.getMessage()) for record in caplog.records]
        caplog.clear()
    return told


def test_buffers_that_take_too_much_memory_are_told_once_and_early(caplog: pytest.LogCaptureFixture) -> None:
    config = DataConfig(buffer_warning_gib=0.01)
    sizes = [10_000] * 600
    (told,) = warnings_of(Buffered(config, streams=8, warns=True), sizes, caplog)
    assert told[0] < config.pack_buffer, "before the other streams fill their buffers"
    assert "samples of 0.01 MB on average: with full buffers 2304 of them wait on every rank, 0.0215 GiB" in told[1]
    assert "data.buffer_warning_gib=0.01" in told[1] and "lower data.shuffle_buffer=256 and begin a new run" in told[1]
    more = dataclasses.replace(config, shuffle_buffer=1, pack_buffer=500)
    ((_, text),) = warnings_of(Buffered(more, streams=8, warns=True), sizes, caplog)
    assert "lower data.pack_buffer=500" in text
    assert not warnings_of(Buffered(config, streams=2, warns=True), sizes, caplog), "less waits"
    assert not warnings_of(Buffered(config, streams=8, warns=False), sizes, caplog), "another rank says so"
    silent = dataclasses.replace(config, buffer_warning_gib=None)
    assert not warnings_of(Buffered(silent, streams=8, warns=True), sizes, caplog)


def test_a_rare_large_sample_does_not_warn_and_a_mixture_that_grows_does(caplog: pytest.LogCaptureFixture) -> None:
    """2,304 wait, over the limit at 4,660 bytes each: one in ten thousand of 20 MB is 2,000."""
    buffered = Buffered(DataConfig(buffer_warning_gib=0.01), streams=8, warns=True)
    assert not warnings_of(buffered, [20_000_000, *[1] * 9_999], caplog)
    ((number, _),) = warnings_of(buffered, [10_000] * 9_000, caplog)
    assert 500 < number < 2 * 2304


def test_a_run_warns_of_its_buffers_and_reads_the_same_rows(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    silent = two_sources(tmp_path, make, seq_length=200, num_streams=3, shuffle_buffer=9, pack_buffer=10)
    config = dataclasses.replace(silent, buffer_warning_gib=1e-6)
    readers = {
        name: Reader(one, processor, seed=0, numbers=numbers)
        for name, one, numbers in (
            ("plain", silent, [0, 1, 2]), ("warned", config, [0, 1, 2]), ("second", config, [1, 2]),
        )
    }  # fmt: skip
    rows = {name: [reader.next_row() for _ in range(9)] for name, reader in readers.items()}
    (record,) = caplog.records
    assert "with full buffers 57 of them wait on every rank" in record.getMessage()
    keys = {name: [[sample.key for sample in row.samples] for row in read] for name, read in rows.items()}
    assert keys["plain"] == keys["warned"]
    # what warns is no part of a position
    readers["warned"].load_state(json.loads(json.dumps(readers["plain"].positions())))
