"""What a run says of its mixture when it starts: shares, sizes, and how often each source will be read."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from loops_tiny import MIXED, SUPERVISED, lines, start

from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.listing import ShardList
from sail_train.data.mix import Mixture
from sail_train.loops.mixture import Announcement, mean_shares


def mixture(**sources: SourceConfig) -> tuple[DataConfig, Mixture]:
    config = DataConfig(sources=sources)
    return config, Mixture.of(config, {name: source.weight for name, source in sources.items()})


def test_shares_are_those_of_the_whole_run() -> None:
    _, asked = mixture(
        a=SourceConfig(shards="a.tar", weight=0.5, stop_step=80),
        b=SourceConfig(shards="b.tar", weight=0.5),
        c=SourceConfig(shards="c.tar", start_step=20),
        never=SourceConfig(shards="n.tar", start_step=100),
    )
    found = mean_shares(asked, 100)
    assert found == pytest.approx({
        "a": 0.2 / 2 + 0.6 / 4, "b": 0.2 / 2 + 0.6 / 4 + 0.2 / 3, "c": 0.6 / 2 + 0.2 * 2 / 3, "never": 0.0
    })  # fmt: skip
    assert sum(found.values()) == pytest.approx(1.0)


def test_epochs_follow_from_the_samples_of_a_step_and_end_with_the_sources(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("sail_train"), "propagate", True)
    config, asked = mixture(
        a=SourceConfig(shards="a.tar", size=500), b=SourceConfig(shards="b.tar", size=500, epochs=2), c=SourceConfig(
            shards="c.tar", weight=2)
    )  # fmt: skip
    paths = {name: ShardList([[f"{name}.tar"]]) for name in "abc"}
    with caplog.at_level("INFO", logger="sail_train"):
        announcement = Announcement(config, asked, paths, steps=100)
        for _ in range(2):
            announcement.epochs(80.0)
    assert [record.getMessage() for record in caplog.records] == [
        "about 80 samples a step: 100 steps read so many epochs of the sources' samples: a 4, b 2"
    ]


def test_a_run_tells_its_mixture_once_and_warns_of_what_comes_too_late(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that is added without a weight shows as the half that it is."""
    monkeypatch.setattr(logging.getLogger("sail_train"), "propagate", True)
    run = tmp_path / "run"
    added = ("data.sources.boxed.shards=${data_dir}/boxed/*.tar", "data.sources.late.start_step=9",
             "data.sources.read.size=100", "data.sources.late.shards=${data_dir}/boxed/*.tar")  # fmt: skip
    with caplog.at_level("INFO", logger="sail_train"):
        assert start(data, *SUPERVISED, *MIXED, *added, "train.max_steps=2", f"run_dir={run}") == 0
    told = [record.getMessage() for record in caplog.records]
    (table,) = [text for text in told if text.startswith("the mixture of 2 steps:\n")]
    assert re.search(r"\n  read +25.0% +\d+ +100 +all\n", table) and re.search(r"\n  boxed +50.0% +6 +", table)
    assert re.search(r"\n  late +0.0% +6 +.* +9 to the end$", table)
    (late,) = [text for text in told if "start_step" in text]
    assert late == "data.sources.late.start_step=9 is not before train.max_steps=2: nothing of it is read"
    (epochs,) = [text for text in told if text.startswith("about ")]
    read = lines(run)[0]
    assert samples_of(read) > 0
    assert f"read {0.25 * round(2 * samples_of(read)) / 100:.3g}" in epochs


def samples_of(line: dict[str, float]) -> float:
    return sum(value for name, value in line.items() if name.startswith("samples/"))
