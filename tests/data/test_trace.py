"""The trace of a run: the same bytes whatever the ranks, the workers, and where it was resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sail_train.config import to_mapping
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.trace import Labels, Trace, steps_of
from sail_train.data.worker import Worker
from sail_train.processor.processor import SailVLProcessor

STEPS = 24
LAYOUTS = [(1, 0), (1, 2), (2, 1), (2, 2), (4, 1), (8, 1)]
"""Ranks, and workers of each."""
DEALT = [{"workers": 0, "balance": "off"}, {"workers": 2, "balance": "world", "prefetch": 2, "micro_batch": 2}]
"""Two ranks with the rows that they read, and with rows that change hands."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, mixture_folder: Path) -> DataConfig:
    """Eight streams of three sources: one with bad samples of every kind, one that is exhausted on the way."""
    folder = mixture_folder
    return DataConfig(
        sources={
            "first": SourceConfig(shards=f"{folder}/first/*.tar", weight=2.0, max_bad=1000, think_flag=0.5),
            "second": SourceConfig(shards=f"{folder}/second/*.tar", max_bad=1000),
            "brief": SourceConfig(shards=f"{folder}/first/*.tar", weight=1.5, epochs=2.0, max_bad=1000),
        },
        seq_length=160, max_patches=24, num_streams=8, batch_rows=8, shuffle_buffer=6, pack_buffer=5, prefetch=0,
    )  # fmt: skip


def text(trace: Iterator[dict[str, Any]], steps: int) -> bytes:
    file = io.StringIO()
    for _, record in zip(range(steps), trace, strict=False):
        file.write(json.dumps(record) + "\n")
    return file.getvalue().encode()


def with_workers(config: DataConfig, workers: int) -> DataConfig:
    return dataclasses.replace(config, workers=workers)


@pytest.fixture(scope="module")
def whole(config: DataConfig, processor: SailVLProcessor) -> tuple[list[bytes], list[dict[str, Any]]]:
    """The lines of an uninterrupted trace of one rank, and the positions before each."""
    with Trace(config, processor, seed=3) as trace:
        lines, positions = [], [trace.positions()]
        for _ in range(STEPS):
            lines.append(text(trace, 1))
            positions.append(json.loads(json.dumps(trace.positions())))
    return lines, positions


def test_the_run_that_is_compared_has_all_that_could_go_wrong(
    config: DataConfig, processor: SailVLProcessor, whole: tuple[list[bytes], list[dict[str, Any]]]
) -> None:
    lines, positions = whole
    counted = {name: sum(state["counts"][name][1] for state in positions[-1].values() if "counts" in state)
               for name in config.sources}  # fmt: skip
    assert counted["second"] > 5 and all(len(json.loads(line)["rows"]) == 8 for line in lines)
    with Trace(config, processor, seed=3, decode=False) as trace:
        undecoded = [text(trace, 1) for _ in range(STEPS)]
    assert any(b"zbad.tar:a" in line for line in undecoded) and not any(b"zbad.tar:a" in line for line in lines)
    assert b"brief:" in lines[0] and b"brief:" not in lines[-1], "a source is exhausted on the way"


class Played:
    """Stands for a worker process: the worker itself on a thread of this one, over the same socket and memory."""

    def __init__(self, command: list[str], *, pass_fds: tuple[int, int], **_: Any) -> None:
        self.pid = 0
        connection, memory = Connection(os.dup(pass_fds[0])), mmap.mmap(pass_fds[1], 0)
        threading.Thread(target=self._serve, args=(connection, memory), daemon=True).start()

    def wait(self, timeout: float | None = None) -> int:
        return 0

    @staticmethod
    def _serve(connection: Connection, memory: mmap.mmap) -> None:
        with contextlib.suppress(EOFError, OSError):
            worker = Worker(connection, memory, json.loads(connection.recv_bytes()))
            threading.Thread(target=worker.listen, args=(lambda code: None,), daemon=True).start()
            worker.work()


@pytest.fixture(scope="module", params=["played", pytest.param("processes", marks=pytest.mark.slow)])
def traces(
    request: pytest.FixtureRequest, config: DataConfig, processor: SailVLProcessor
) -> Iterator[dict[tuple[int, int], Trace]]:
    """A trace of each layout, its workers played or the 20 processes that they are."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            if request.param == "played":
                patch.setattr("sail_train.data.workers.subprocess.Popen", Played)
            traces = {
                (ranks, workers): stack.enter_context(
                    Trace(with_workers(config, workers), processor, seed=3, ranks=ranks)
                )
                for ranks, workers in LAYOUTS
            }
        yield traces


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_trace_does_not_depend_on_ranks_and_workers(
    traces: dict[tuple[int, int], Trace],
    whole: tuple[list[bytes], list[dict[str, Any]]],
    layout: tuple[int, int],
) -> None:
    lines, positions = whole
    trace = traces[layout]
    trace.load_state(positions[0])
    assert text(trace, STEPS) == b"".join(lines)
    assert json.loads(json.dumps(trace.positions())) == positions[-1]


@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", LAYOUTS)
def test_resumed_at_a_random_step_from_each_layout_to_each(
    traces: dict[tuple[int, int], Trace],
    whole: tuple[list[bytes], list[dict[str, Any]]],
    before: tuple[int, int],
    after: tuple[int, int],
) -> None:
    lines, positions = whole
    stopped = random.Random(repr((before, after))).randrange(1, STEPS - 3)
    traces[before].load_state(positions[stopped - 1])
    assert text(traces[before], 1) == lines[stopped - 1]
    saved = json.loads(json.dumps(traces[before].positions()))
    traces[after].load_state(saved)
    assert text(traces[after], 3) == b"".join(lines[stopped : stopped + 3])
    assert json.loads(json.dumps(traces[after].positions())) == positions[stopped + 3]


def test_real_workers_read_the_same_from_the_start_and_resumed(
    config: DataConfig, processor: SailVLProcessor, whole: tuple[list[bytes], list[dict[str, Any]]]
) -> None:
    """Started once, and sent from place to place."""
    lines, positions = whole
    with Trace(with_workers(config, 2), processor, seed=3) as trace:
        assert text(trace, STEPS) == b"".join(lines)
        assert json.loads(json.dumps(trace.positions())) == positions[-1]
        for stopped in random.Random(0).sample(range(STEPS - 4), 4):
            trace.load_state(positions[stopped])
            assert text(trace, 3) == b"".join(lines[stopped : stopped + 3])
            assert json.loads(json.dumps(trace.positions())) == positions[stopped + 3]


@pytest.mark.slow
@pytest.mark.parametrize("settings", DEALT, ids=lambda settings: "-".join(map(str, settings.values())))
def test_what_ranks_in_processes_of_their_own_are_dealt_is_the_trace_together(
    tmp_path: Path,
    config: DataConfig,
    processor: SailVLProcessor,
    whole: tuple[list[bytes], list[dict[str, Any]]],
    settings: dict[str, Any],
) -> None:
    """Two of them in one process group, resumed on the way; then one goes on from the positions of both."""
    lines, positions = whole
    steps, of_ranks = STEPS - 4, dataclasses.replace(config, **settings)
    processor.save_pretrained(tmp_path / "processor")
    spec = {"config": to_mapping(of_ranks), "processor": str(tmp_path / "processor"), "seed": 3, "steps": steps}
    (tmp_path / "spec.json").write_text(json.dumps({**spec, "stop": 9}))
    script = Path(__file__).with_name("ranks_dealt.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [(tmp_path / f"dealt-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    label, swapped = Labels(config), 0
    for step, parts in enumerate(zip(*ranks, strict=True)):
        mine, theirs = map(json.loads, parts)
        assert len(mine) == len(theirs) == 4
        swapped += any(index % 2 for index, _ in mine)
        rows = [[label(*sample) for sample in row] for _, row in sorted(mine + theirs)]
        assert json.dumps({"step": step + 1, "rows": rows}).encode() + b"\n" == lines[step]
    assert len(ranks[0]) == steps and (swapped > 0) == (of_ranks.balance == "world")
    saved = json.loads((tmp_path / "positions.json").read_text())
    assert saved == positions[steps]
    with Trace(config, processor, seed=3, positions=saved) as trace:
        assert text(trace, 4) == b"".join(lines[steps:])


def test_a_start_without_a_state_is_found_by_packing(
    config: DataConfig, processor: SailVLProcessor, whole: tuple[list[bytes], list[dict[str, Any]]]
) -> None:
    lines, positions = whole
    for start, positions_then in ((13, None), (13, positions[9])):
        with Trace(config, processor, seed=3, ranks=2, start=start, positions=positions_then) as trace:
            assert text(trace, 3) == b"".join(lines[13:16])
    with pytest.raises(ValueError, match="--start 3 lies before the state, which is after step 9"):
        Trace(config, processor, seed=3, start=3, positions=positions[9])


def test_a_trace_ends_when_all_sources_are_exhausted(
    tmp_path: Path, processor: SailVLProcessor, make: SimpleNamespace
) -> None:
    shards = make.shards(tmp_path, "few", range(60), per_shard=7)
    source = SourceConfig(shards=shards, epochs=1)
    config = DataConfig(sources={"few": source}, seq_length=160, num_streams=4, batch_rows=4, shuffle_buffer=3)
    traces = []
    for ranks in (1, 4):
        with Trace(config, processor, seed=0, ranks=ranks) as trace:
            traces.append(text(trace, 1000))
    assert traces[0] == traces[1]
    samples = [sample for line in traces[0].splitlines() for row in json.loads(line)["rows"] for sample in row]
    assert len(samples) == len(set(samples)) == 60, "each sample once, the last rows' too"


def test_samples_are_named_by_as_much_of_the_path_as_is_needed(tmp_path: Path, make: SimpleNamespace) -> None:
    for name in ("a", "b"):
        make.tar(tmp_path / name / "0.tar", [("x.json", make.json())])
    make.tar(tmp_path / "a" / "1.tar", [("x.json", make.json())])
    sources = {"one": SourceConfig(shards=f"{tmp_path}/a/*.tar"), "two": SourceConfig(shards=f"{tmp_path}/*/0.tar")}
    label = Labels(DataConfig(sources=sources))
    assert label("one", f"{tmp_path}/a/1.tar", "x") == "one:1.tar:x"
    assert label("two", f"{tmp_path}/b/0.tar", "x") == "two:b/0.tar:x"


def test_positions_that_are_not_those_of_a_whole_step_are_refused(
    config: DataConfig, whole: tuple[list[bytes], list[dict[str, Any]]]
) -> None:
    positions = whole[1][5]
    assert steps_of(positions, config) == 5
    with pytest.raises(ValueError, match=r"no position for streams \[3\]"):
        steps_of({name: state for name, state in positions.items() if name != "3"}, config)
    ahead = {**positions, "0": {**positions["0"], "taken": positions["0"]["taken"] + 1}}
    with pytest.raises(ValueError, match="after 41 rows, no multiple of data.batch_rows=8"):
        steps_of(ahead, config)


def test_undecoded_rows_are_not_read_by_workers(config: DataConfig, processor: SailVLProcessor) -> None:
    with pytest.raises(ValueError, match="--no-decode with --workers 1"):
        Trace(with_workers(config, 1), processor, seed=3, decode=False)
