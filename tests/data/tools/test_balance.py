"""Balancing: weights that hit their targets, rare samples more often, and charts before and after."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from sail_train.cli import main
from sail_train.data.index import MAX_WEIGHT, add_columns, ensure_index
from sail_train.data.tools.balance import run
from sail_train.data.tools.weights import as_html, as_text, chart, log_histogram, ratios, scale, tail_copies


def test_weights_of_sources_give_the_target_shares_of_tokens() -> None:
    targets, lengths = (
        {"long": 0.5, "short": 0.25, "mid": 0.25, "off": 0.0},
        {"long": 400, "short": 10, "mid": 50, "off": 0},
    )
    weights = ratios(targets, lengths)
    assert sum(weights.values()) == pytest.approx(1) and weights["off"] == 0
    tokens = {name: weight * lengths[name] for name, weight in weights.items()}
    for name, target in targets.items():
        assert tokens[name] / sum(tokens.values()) == pytest.approx(target)


@pytest.mark.parametrize(
    ("targets", "message"),
    [({"a": -1.0}, "must be 0 or more"), ({"a": 0.0}, "at least one"), ({"b": 1.0}, "no tokens")],
)
def test_targets_that_make_no_sense_are_refused(targets: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratios(targets, {"a": 1, "b": 0})


def test_rare_domains_are_brought_up_to_half_the_mean_and_no_further() -> None:
    counts = {"cats": 180, "dogs": 100, "newts": 20, "olms": 4}  # mean 76, half of it 38
    copies = tail_copies(counts, floor=0.5, most=0)
    assert copies == {"cats": 1, "dogs": 1, "newts": 1.9, "olms": 9.5}
    assert tail_copies(counts, floor=0.5, most=3)["olms"] == 3 and tail_copies({}, floor=0.5, most=0) == {}
    assert tail_copies({"all": 10**7, "one": 1}, floor=0.5, most=0)["one"] == MAX_WEIGHT, "a stream refuses more"


@pytest.mark.parametrize(("least", "most"), [(0.0, 100.0), (0.1, 5.0), (0.9, 1.1), (1.0, 1.0)])
def test_the_mean_weight_is_one_after_clipping(least: float, most: float) -> None:
    raw = np.random.default_rng(0).lognormal(3, 2, 20_000)
    weights = np.clip(scale(log_histogram(raw), least, most) * raw, least, most)
    assert weights.mean() == pytest.approx(1, abs=0.01)


def test_charts_show_shares_and_escape_labels() -> None:
    shown = chart("x & y", ["<b>", "rare"], [3, 1], [2, 2])
    assert shown.before == (0.75, 0.25) and "75.00%" in (text := as_text(shown)) and text.count("█") > 2
    page = as_html(shown)
    assert "&lt;b&gt;" in page and "<b>" not in page and "<script" not in page
    assert "nothing" in as_text(chart("nothing", [], [], []))


@pytest.fixture
def shards(tmp_path: Path, make: SimpleNamespace) -> list[str]:
    """Twenty samples that say one thing and two that say another, of three topics, in two shards."""
    paths = []
    for part in range(2):
        files = []
        for n in range(11):
            text = "there is one red cat in the picture" if n else f"quantum foam number {part}"
            topic = {"topic": "cats"} if n > 1 else {"topic": "physics"} if n == 0 else {}
            files.append((f"k{n}.json", make.json(text, meta=topic)))
        paths.append(str(make.tar(tmp_path / f"{part}.tar", [*files, ("x.pickle", b"")])))
    return paths


def weights(shard: str) -> list[float]:
    column: list[float] = ensure_index(shard).column("weight").to_pylist()
    return column


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_rare_wording_is_seen_more_often_and_the_mean_stays(
    shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["ngrams", *shards, "--json", "--html", str(tmp_path / "chart.html")]
    assert main(["data", "balance", *argv]) == 0
    found = report(capsys)
    first = weights(shards[0])
    assert first[0] > 2 and max(first[1:11]) < 1 and first[11] == 1
    assert found["counts"]["mean weight"] == pytest.approx(1, abs=0.01) and found["counts"]["weighed"] == 22
    assert found["counts"]["effective samples"] < 22
    histogram = found["histogram"]
    rare = max(place for place, share in enumerate(histogram["before"]) if share)
    assert histogram["after"][rare] > 2 * histogram["before"][rare]
    assert "after" in (tmp_path / "chart.html").read_text()
    assert run(argv) == 0 and weights(shards[0]) == first


def test_samples_that_a_filter_dropped_neither_count_nor_come_back(shards: list[str]) -> None:
    for shard in shards:
        add_columns(shard, {"weight": [0.0] * 6 + [1.0] * 6})
    assert run(["ngrams", *shards]) == 0
    assert weights(shards[0])[:6] == [0] * 6 and weights(shards[0])[6:11] == pytest.approx([1] * 5, abs=0.02)


def test_rare_topics_are_duplicated(shards: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tail", *shards, "--domain", "meta.topic"]) == 0
    printed = capsys.readouterr().out
    # 18 cats and 2 of physics: half the mean is 5, so each of the 2 is seen 2.5 times
    assert weights(shards[0]) == [2.5] + [1.0] * 11
    assert "domains raised: 1" in printed and "░ before" in printed and "physics" in printed
    assert run(["tail", *shards, "--domain", "meta.topic", "--most", "2", "--jobs", "2"]) == 0
    assert weights(shards[1])[0] == 2


def test_a_domain_may_be_a_column(shards: list[str]) -> None:
    for shard in shards:
        add_columns(shard, {"language": ["zh"] + ["en"] * 10 + [None]})
    assert run(["tail", *shards, "--domain", "language"]) == 0
    assert weights(shards[0])[0] == pytest.approx(11 / 2 / 2) and weights(shards[0])[1:] == [1] * 11


def test_ratios_are_printed_as_yaml_that_a_config_takes(shards: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    add_columns(shards[0], {"num_tokens": [10] * 11 + [None]})
    add_columns(shards[1], {"num_tokens": [40] * 11 + [None]})
    argv = ["ratios", "--source", f"a={shards[0]}", "--source", f"b={shards[1]}", "--target", "a=1", "--target", "b=1"]
    assert run(argv) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == {"data": {"sources": {"a": {"weight": 0.8}, "b": {"weight": 0.2}}}}
    assert run([*argv, "--by", "samples", "--json"]) == 0
    assert report(capsys)["weights"] == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ngrams", "S", "--least", "2"], "the mean is 1"),
        (["ngrams", "S", "--most", "2000"], "most <= 1000"),
        (["tail", "S", "--domain", "meta.topic", "--most", "2000"], "--most 2000"),
        (["ngrams", "S", "--size", "0"], "--size 0"),
        (["tail", "S", "--domain", "langauge"], "no such column"),
        (["tail", "S", "--domain", "meta.none"], "no sample has one"),
        (["tail", "S", "--domain", "meta.topic", "--floor", "2"], "--floor 2"),
        (["ratios", "--source", "a=S", "--target", "b=1"], "no such --source"),
        (["ratios", "--source", "a=S", "--source", "b=S", "--target", "b=1"], "has no --target a"),
        (["ratios", "--source", "a=S", "--target", "a=x"], "is no number"),
        (["ratios", "--source", "S", "--target", "a=1"], "should be NAME=VALUE"),
        (["ratios", "--source", "a=T", "--target", "a=1"], "no num_tokens"),
    ],
)
def test_wrong_arguments_say_what_to_do(shards: list[str], argv: list[str], message: str) -> None:
    if argv[1:] and argv[2] != "a=T":
        add_columns(shards[0], {"num_tokens": [1] * 12})
    named = [
        text.replace("S", shards[0]) if text in ("S", "a=S", "b=S") else text.replace("a=T", f"a={shards[1]}")
        for text in argv
    ]
    with pytest.raises(ValueError, match=message):
        run(named)


def test_a_domain_that_is_only_to_be_measured_says_how(shards: list[str]) -> None:
    with pytest.raises(
        ValueError, match="'language' is not measured yet: `sail-train data filter --measure` writes it"
    ):
        run(["tail", *shards, "--domain", "language"])


def test_every_answer_of_a_conversation_is_weighed(tmp_path: Path, make: SimpleNamespace) -> None:
    def talk(*said: str) -> bytes:
        turns = [[{"role": "user", "content": "what"}, {"role": "assistant", "content": text}] for text in said]
        return json.dumps({"messages": sum(turns, [])}).encode()

    files = [(f"k{n}.json", talk("there is one red cat", "yes it is")) for n in range(9)]
    files.append(("rare.json", talk("quantum foam all over", "yes it is")))
    shard = str(make.tar(tmp_path / "a.tar", files))
    assert run(["ngrams", shard, "--json"]) == 0
    assert weights(shard)[-1] > 2 * weights(shard)[0], "its last answer is everybody's"


@pytest.mark.parametrize(
    "argv", [["ngrams", "--work", "SHARD/x"], ["ngrams", "--html", "GONE"], ["tail", "--html", "GONE"]]
)
def test_places_that_cannot_be_written_are_named_before_any_work(shards: list[str], argv: list[str]) -> None:
    kind, *options = (each.replace("SHARD", shards[0]).replace("GONE", "/nope/x.html") for each in argv)
    domain = ["--domain", "meta.topic"] if kind == "tail" else []
    with pytest.raises(ValueError, match="is no folder; name another|there is no folder /nope"):
        run([kind, shards[0], *domain, *options])
    assert not Path(shards[0]).with_name("0.index.parquet").exists()
