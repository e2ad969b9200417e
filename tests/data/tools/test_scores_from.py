"""Pass rates find the samples that they are of, and are then a column that filters use like any other."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sail_train.cli import main
from sail_train.data.index import add_columns, ensure_index
from sail_train.data.tools.scores_from import _band, run


def line(
    key: str, rate: float | None, *, prompt: str = "what", truth: str | None = "1", n: int = 4, source: str = "s"
) -> str:
    """As `loops.sample` writes it; tests/loops holds that it does."""
    record = {"phase": "sample", "source": source, "key": key, "prompt": prompt, "truth": truth, "pass_rate": rate}
    return json.dumps({**record, "responses": ["x"] * n}) + "\n"


@pytest.fixture
def shards(tmp_path: Path, make: SimpleNamespace) -> list[str]:
    """Keys k0..k3 in both shards, told apart by their truths; k4 is the same in both."""
    return [
        str(make.tar(tmp_path / f"{part}.tar", [
            *((f"k{n}.json", make.json("x", answer=f"{part}{n}")) for n in range(4)),
            ("k4.json", make.json("x", answer="1")), ("bad.json", b"{"),
        ]))
        for part in range(2)
    ]  # fmt: skip


def rates(shard: str) -> list[float | None]:
    column: list[float | None] = ensure_index(shard).column("pass_rate").to_pylist()
    return column


def test_pass_rates_land_where_they_belong_and_filter_like_any_column(
    shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_columns(shards[1], {"pass_rate": [None, None, None, 0.9, None, None]})
    lines = [
        line("k0", 0.0, truth="00"), line("k1", 0.5, truth="01"), line("k2", 1.0, truth="02"),
        line("k0", 0.25, truth="10"), line("k1", 1.0, truth="01", n=12), line("k4", 0.5), line("k9", 0.5),
        line("k3", None, truth="03"), line("k3", 0.5, truth="03", source="other"), line("k3", 0.5, truth="03")[:20],
    ]  # fmt: skip
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(lines))
    argv = ["data", "scores-from", str(samples), *shards, "--source", "s", "--json"]
    assert main(argv) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert rates(shards[0]) == [0.0, (4 * 0.5 + 12 * 1.0) / 16, 1.0, None, None, None]
    assert rates(shards[1]) == [0.25, None, None, 0.9, None, None]
    assert counts["written"] == 4 and counts["prompts not found"] == 1 and counts["prompts found several times"] == 1
    assert counts["lines"] == {"used": 7, "not graded": 1, "of other sources": 1, "cut off": 1}
    assert counts["pass rates"] == {"0": 1, "0.75 < p < 1": 1, "1": 1, "0 < p <= 0.25": 1}
    where = ["--where", "pass_rate > 0", "--where", "pass_rate <= 0.75"]
    assert main(["data", "filter", *shards, *where, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["kept"] == 1
    assert ensure_index(str(tmp_path / "out" / "1.tar")).column("pass_rate").to_pylist() == [0.25]


def test_bands_close_at_their_upper_end() -> None:
    assert [_band(rate) for rate in (0, 0.25, 0.26, 0.75, 0.9, 1)] == [
        "0", "0 < p <= 0.25", "0.25 < p <= 0.5", "0.5 < p <= 0.75", "0.75 < p < 1", "1"
    ]  # fmt: skip


def test_the_same_comes_out_of_several_processes(shards: list[str], tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text(line("k0", 0.5, truth="00"))
    assert run([str(samples), *shards, "--jobs", "2"]) == 0
    assert rates(shards[0])[0] == 0.5 and rates(shards[1]) == [None] * 6


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        "{}",
        line("k", 1.5).strip(),
        line("k", 0.5, n=0).strip(),
        line("k", float("nan")).strip(),
        '{"key": 1}',
    ],
)
def test_lines_of_something_else_are_refused(shards: list[str], tmp_path: Path, record: Any) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text(f"{record}\n")
    with pytest.raises(ValueError, match="line 1 is none of the sample loop's"):
        run([str(samples), *shards])


def test_rates_of_other_shards_are_an_error(shards: list[str], tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text(line("elsewhere", 0.5))
    with pytest.raises(ValueError, match="none of the 1 prompts"):
        run([str(samples), *shards])


def test_a_missing_file_is_named(shards: list[str]) -> None:
    with pytest.raises(ValueError, match="/gone.jsonl does not exist"):
        run(["/gone.jsonl", *shards])


def test_a_source_that_the_run_did_not_have_is_told_with_those_that_it_had(shards: list[str], tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text(line("k0", 0.5, source="sums") + line("k1", 0.5, source="charts"))
    with pytest.raises(
        ValueError, match="--source 'nope': .*samples.jsonl has none of it; its sources are charts, sums"
    ):
        run([str(samples), *shards, "--source", "nope"])
