"""Worker processes: killed, failing, left alone by a trainer that is gone; nothing of them stays behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.quarantine import TooManyBadSamples
from sail_train.data.reader import Reader
from sail_train.data.ready import ReadyRow
from sail_train.data.stream import Stream
from sail_train.data.worker import told
from sail_train.data.workers import Raised, WorkerDied, Workers
from sail_train.processor.processor import SailVLProcessor


def rows_of(workers: Workers, count: int) -> list[tuple[int, bytes, bytes]]:
    return [printed(workers.next_ready()) for _ in range(count)]


def printed(row: ReadyRow) -> tuple[int, bytes, bytes]:
    return row.index, row.buffer.tobytes(), repr((row.keys, row.position, row.quarantined)).encode()


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def alive(process: int) -> bool:
    try:
        return f"{Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0]}" not in "ZX"
    except OSError:
        return False


@pytest.fixture(scope="module")
def config(mixture_folder: Path) -> DataConfig:
    sources = {
        "first": SourceConfig(shards=f"{mixture_folder}/first/*.tar", weight=2.0, max_bad=1000),
        "second": SourceConfig(shards=f"{mixture_folder}/second/*.tar", max_bad=1000),
    }
    return DataConfig(
        sources=sources, seq_length=160, max_patches=24, num_streams=3, batch_rows=3, shuffle_buffer=8, pack_buffer=5,
        prefetch=0, workers=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(config: DataConfig, processor: SailVLProcessor) -> list[tuple[int, bytes, bytes]]:
    reader = Reader(config, processor, seed=1, numbers=range(3))
    return [printed(reader.next_ready()) for _ in range(60)]


@pytest.fixture(scope="module")
def workers(config: DataConfig, processor: SailVLProcessor) -> Iterator[Workers]:
    """Two processes for three streams, started once; the tests send them back to the beginning."""
    started = Workers(config, processor, seed=1, numbers=range(3))
    yield started
    started.close()
    assert not any(alive(worker.process.pid) for worker in started._workers)


@pytest.fixture
def rewound(workers: Workers, config: DataConfig, processor: SailVLProcessor) -> Workers:
    workers.load_state(Reader(config, processor, seed=1, numbers=range(3)).positions())
    return workers


def test_rows_positions_and_records_are_those_of_the_trainer_itself(
    rewound: Workers, expected: list[tuple[int, bytes, bytes]]
) -> None:
    assert rows_of(rewound, 60) == expected


def test_a_killed_worker_is_replaced_and_no_row_is_lost(
    rewound: Workers, expected: list[tuple[int, bytes, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="sail_train")
    first = rows_of(rewound, 10)
    killed = rewound._workers[1].process.pid
    os.kill(killed, signal.SIGKILL)
    assert first + rows_of(rewound, 20) == expected[:30]
    assert f"data worker 1 of rank 0 (process {killed}) was killed by SIGKILL" in caplog.text


def test_what_a_terminal_sends_to_all_does_not_end_a_worker(
    rewound: Workers, expected: list[tuple[int, bytes, bytes]]
) -> None:
    rows_of(rewound, 5)
    processes = [worker.process.pid for worker in rewound._workers]
    for process in processes:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(process, number)
        assert os.getpgid(process) != os.getpgid(0), "Ctrl-C goes to the trainer alone"
    assert rows_of(rewound, 10) == expected[5:15]
    assert [worker.process.pid for worker in rewound._workers] == processes


def test_a_worker_that_dies_again_at_once_stops_the_run(
    config: DataConfig, processor: SailVLProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sail_train.data.workers.sys.executable", "/bin/false")
    stillborn = Workers(dataclasses.replace(config, workers=1), processor, seed=1, numbers=range(3))
    with pytest.raises(WorkerDied, match=r"data worker 0 of rank 0 \(process \d+\) ended with exit code 1, as the one"):
        stillborn.next_ready()
    stillborn.close()


def test_more_workers_than_streams_are_refused(config: DataConfig, processor: SailVLProcessor) -> None:
    with pytest.raises(ValueError, match=r"data.workers=4 is more than the 3 streams of a rank .* use at most 3"):
        Stream(dataclasses.replace(config, workers=4), processor, seed=0)


def test_what_a_worker_raises_surfaces_in_the_trainer(
    tmp_path: Path, processor: SailVLProcessor, make: SimpleNamespace
) -> None:
    """One launch for a source over its budget, counted over all workers, and for a shard that vanished."""
    files = [*((f"{number}.json", make.json()) for number in range(9)), ("x.json", b"{")]
    shards = [str(make.tar(tmp_path / f"{name}.tar", files)) for name in "ab"]
    source = SourceConfig(shards=shards, max_bad=3)
    config = DataConfig(
        sources={"s": source}, seq_length=64, num_streams=2, batch_rows=2, pack_buffer=2, shuffle_buffer=1, workers=2
    )
    with Stream(config, processor, seed=0) as stream:
        start = stream.positions
        with pytest.raises(TooManyBadSamples, match=r"source 's': 4 of \d+ samples are bad.*max_bad=3.*tar 'x'"):
            for _ in range(100):
                next(stream)
        stream.load_state(start)
        (tmp_path / "b.tar").unlink()
        with pytest.raises(Exception, match=r"b.tar") as caught:
            for _ in range(100):
                next(stream)
        assert any("in data worker" in note for note in caught.value.__notes__)


def test_every_kind_of_exception_is_told_and_raised_again() -> None:
    for error, kind in ((ValueError("v"), ValueError), (TooManyBadSamples("t", [{"key": "k"}]), TooManyBadSamples)):
        again = Raised("data worker 0", json.loads(json.dumps(told(error)))).error()
        assert type(again) is kind and str(again) == str(error)
        assert not isinstance(again, TooManyBadSamples) or again.records == ({"key": "k"},)
    for other in (OSError(5, "Input/output error", "/data/a.tar"), KeyError("k")):
        again = Raised("data worker 0", told(other)).error()
        assert type(again) is RuntimeError and f"data worker 0 failed: {type(other).__name__}" in str(again)
    assert "/data/a.tar" in str(Raised("w", told(OSError(5, "Input/output error", "/data/a.tar"))).error())


PROGRAM = """
import sys, time
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.stream import Stream
from sail_train.processor.processor import load_processor
folder, shards, mode = sys.argv[1:]
config = DataConfig(sources={"s": SourceConfig(shards=shards)}, seq_length=160, num_streams=2, batch_rows=2,
                    shuffle_buffer=4, pack_buffer=4, workers=2, prefetch=2)
with Stream(config, load_processor(folder), seed=0) as stream:
    next(stream)
    sys.stdout.write(" ".join(str(worker.process.pid) for worker in stream._reader._workers) + "\\n")
    sys.stdout.flush()
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_trainer(
    tmp_path: Path, processor: SailVLProcessor, mixture_folder: Path, number: signal.Signals
) -> None:
    processor.save_pretrained(tmp_path / "processor")
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    shards = f"{mixture_folder}/first/*.tar"
    command = [sys.executable, str(program), str(tmp_path / "processor"), shards, "x"]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=os.getcwd(),
                               env={**os.environ, "PYTHONPATH": os.getcwd()})  # fmt: skip
    assert trainer.stdout is not None and trainer.stderr is not None
    workers = [int(process) for process in trainer.stdout.readline().split()]
    assert len(workers) == 2 and all(map(alive, workers))
    trainer.send_signal(number)
    assert eventually(lambda: not any(map(alive, workers)))
    trainer.wait(20)
    said = trainer.stderr.read()
    assert said.count("Traceback") == (number == signal.SIGINT), said  # the trainer's own, and no worker's
