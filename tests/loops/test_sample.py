"""The sample loop: which answers are kept, what is written down, and what a run that cannot work says."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loops_tiny import SAMPLE, comparable, events, in_a_box, lines, shard_bytes, start, write_tar

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.index import ensure_index
from sail_train.data.tools import filter, scores_from
from sail_train.data.writer import files_of
from sail_train.loops import sample
from sail_train.loops.config import RunConfig
from sail_train.loops.outcome import Outcome
from sail_train.loops.sample_config import SampleConfig
from sail_train.rewards.format import format_ok
from sail_train.rewards.verifiers import verify
from sail_train.types import Conversation


def kept(run: Path, shards: str = "*.tar") -> list[Conversation]:
    return held_out({"kept": SourceConfig(shards=f"{run}/shards/{shards}")})


def question(conversation: Conversation) -> str:
    return conversation.prompt[-1].text


@pytest.fixture(scope="module")
def sampled(data: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each prompt of the source twice over, so that some come again; two answers of each may be kept."""
    run = tmp_path_factory.mktemp("sampled") / "run"
    twice = ("sample.prompts=150", "sample.keep_per_prompt=2", "sample.samples_per_shard=8")
    assert start(data, *SAMPLE, *twice, f"parent={trained}", f"run_dir={run}") == 0
    return run


def test_only_right_and_well_formed_answers_are_kept(sampled: Path) -> None:
    found = kept(sampled)
    assert len(found) > 20
    for conversation in found:
        said = conversation.messages[-1].text
        assert conversation.answer is not None and conversation.verifier == "number"
        assert verify(conversation.verifier, conversation.answer, said).value == 1
        assert format_ok(said, "stop", "off").value == 1
        assert conversation.mode == "direct" and conversation.messages[-1].role == "assistant"
        assert 0 < conversation.meta["pass_rate"] <= 1


def test_a_prompt_keeps_several_answers_but_none_twice(sampled: Path) -> None:
    asked = Counter(record["key"] for record in lines(sampled, "samples"))
    assert max(asked.values()) > 1, "some prompts came in two epochs"
    several = 0
    for shard in sorted((sampled / "shards").glob("*-000000.tar")):
        stream = kept(sampled, shard.name.replace("-000000.tar", "-*.tar"))
        prompts = [(question(conversation), *conversation.images) for conversation in stream]
        answers = [conversation.messages[-1].text for conversation in stream]
        pairs = list(zip(prompts, answers, strict=True))
        assert len(set(pairs)) == len(pairs)
        several += max(Counter(prompts).values()) > 1
        assert len({conversation.key for conversation in stream}) == len(stream)
    assert several, "two different answers to one prompt"


def test_what_was_asked_and_answered_is_written_down(data: Path, sampled: Path) -> None:
    records = lines(sampled, "samples")
    assert len(records) == 152, "150 prompts, in two rounds of whole turns of four streams"
    for record in records:
        right = [verify("number", record["truth"], response).value == 1 for response in record["responses"]]
        assert len(right) == 4 and record["pass_rate"] == sum(right) / 4
    (told,) = events(sampled, "sampled")
    rates = [record["pass_rate"] for record in records]
    assert told["sample/pass_rate"] == pytest.approx(sum(rates) / len(rates))
    assert told["sample/mixed"] == pytest.approx(sum(0 < rate < 1 for rate in rates) / len(rates))
    assert (told["sample/prompts"], told["sample/kept"]) == (152, len(kept(sampled)))
    outcome = json.loads((sampled / "outcome.json").read_text())
    assert outcome["metrics_after"] == {name: value for name, value in told.items() if name.startswith("sample/")}
    assert outcome["model_dir"].endswith("trained/model"), "the model is left as it is"


def test_every_stream_writes_its_own_shards(sampled: Path) -> None:
    names = list(shard_bytes(sampled / "shards"))
    assert {name.partition("-")[0] for name in names} == {f"stream{number:05d}" for number in range(4)}
    assert not (sampled / "shards.partial").exists()


def test_pass_rates_land_in_the_index_of_the_shards_that_were_sampled_and_filter_like_any_column(
    data: Path, sampled: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "boxed", tmp_path / "boxed")
    pattern = f"{tmp_path}/boxed/*.tar"
    assert scores_from.run([f"{sampled}/samples.jsonl", pattern]) == 0
    asked: dict[str, list[float]] = {}
    for record in lines(sampled, "samples"):
        asked.setdefault(record["key"], []).append(record["pass_rate"])
    expected = {key: sum(rates) / len(rates) for key, rates in asked.items()}
    found: dict[str, float] = {}
    for shard in sorted((tmp_path / "boxed").glob("*.tar")):
        table = ensure_index(str(shard))
        pairs = zip(table.column("key").to_pylist(), table.column("pass_rate").to_pylist(), strict=True)
        found |= {key: rate for key, rate in pairs if rate is not None}
    assert found == pytest.approx(expected) and len(found) > 20
    where = ("--where", "pass_rate > 0", "--where", "pass_rate <= 0.75")
    assert filter.run([pattern, *where, "--out", str(tmp_path / "hard")]) == 0
    left = held_out({"hard": SourceConfig(shards=f"{tmp_path}/hard/*.tar")})
    assert {conversation.key for conversation in left} == {key for key, rate in expected.items() if 0 < rate <= 0.75}


def test_a_prompt_whose_rewards_all_failed_has_no_pass_rate() -> None:
    failed = SimpleNamespace(shaped=None, reward=SimpleNamespace(correct=False))
    right = SimpleNamespace(shaped=1.0, reward=SimpleNamespace(correct=True))
    assert sample._pass_rate([failed, failed]) is None  # type: ignore[list-item]
    assert sample._pass_rate([failed, right]) == 1  # type: ignore[list-item]
    assert list(sample._choose([failed, failed], SampleConfig(), set())) == []  # type: ignore[list-item]


def test_bounds_on_the_pass_rate_choose_prompts(data: Path, trained: Path, sampled: Path, tmp_path: Path) -> None:
    bounds = ("sample.min_pass_rate=0.25", "sample.max_pass_rate=0.75", "sample.prompts=40")
    run = tmp_path / "run"
    assert start(data, *SAMPLE, *bounds, f"parent={trained}", f"run_dir={run}") == 0
    assert {conversation.meta["pass_rate"] for conversation in kept(run)} <= {0.5, 0.75}
    rates = {record["pass_rate"] for record in lines(run, "samples")}
    assert rates > {0.5, 0.75}, "what is not kept is written down all the same"


def test_a_run_that_was_stopped_starts_again_from_the_first_prompt(data: Path, trained: Path, tmp_path: Path) -> None:
    tokens = (*SAMPLE, f"parent={trained}", f"run_dir={tmp_path / 'run'}")
    assert start(data, *tokens) == 0
    run, expected, shards = tmp_path / "run", comparable(tmp_path / "run"), shard_bytes(tmp_path / "run" / "shards")
    (run / "outcome.json").unlink()  # as if it had been killed amid its records
    (run / "samples.jsonl").write_text((run / "samples.jsonl").read_text()[:2000])
    (run / "shards.partial").mkdir()
    assert start(data, *tokens) == 0
    assert comparable(run) == expected and shard_bytes(run / "shards") == shards


def test_keys_that_come_again_in_the_next_shard_are_other_prompts(data: Path, trained: Path, tmp_path: Path) -> None:
    """As shards that were numbered one by one have them."""
    different = [one for one in held_out({"all": SourceConfig(shards=f"{data}/boxed/*.tar")}) if one.images][:32]
    for number in range(4):
        files = [
            (f"{place:06d}.{kind}", content)
            for place, conversation in enumerate(different[number * 8 : number * 8 + 8])
            for kind, content in files_of(in_a_box(conversation)).items()
            if isinstance(content, bytes)
        ]
        write_tar(tmp_path / "shards" / f"{number}.tar", files)
    source = ("~data.sources.rl", f"data.sources.again.shards={tmp_path}/shards/*.tar", "data.num_streams=2")
    once = ("data.shuffle_buffer=1", "sample.prompts=32")
    run = tmp_path / "run"
    assert start(data, *SAMPLE, *source, *once, f"parent={trained}", f"run_dir={run}") == 0
    right = sum(
        any(
            verify("number", record["truth"], said).value == 1 and format_ok(said, "stop", "off").value == 1
            for said in record["responses"]
        )
        for record in lines(run, "samples")
    )
    # all but those that were cut off after a whole answer, which the record does not tell
    assert right - 2 <= len(kept(run)) <= right and len(kept(run)) > 8


def refused(data: Path, capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    capsys.readouterr()
    assert start(data, *SAMPLE, *tokens) == 2
    return capsys.readouterr().err


def test_a_model_is_needed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "asks a trained model; name it with parent=" in refused(data, capsys, f"run_dir={tmp_path}/run")


def test_a_run_that_keeps_nothing_says_what_to_change(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(
        data, capsys, f"parent={trained}", f"run_dir={tmp_path}/run", "sample.min_pass_rate=1.0", "sample.prompts=8"
    )
    assert "of 8 prompts no answer was kept (pass rate" in told and "widen the bounds" in told
    assert not (tmp_path / "run" / "shards").exists()
    assert len(lines(tmp_path / "run", "samples")) == 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"think": "maybe"}, "sample.think='maybe' must be one of on, off, auto"),
        ({"prompts": 0}, "sample.prompts=0 must be at least 1"),
        ({"max_new_tokens": 0}, "sample.max_new_tokens=0 must be"),
        ({"keep_per_prompt": 0}, "sample.keep_per_prompt=0 must be"),
        ({"samples_per_shard": 0}, "sample.samples_per_shard=0 must be"),
        ({"n": 1}, "sample.n=1 must be at least 2"),
        ({"temperature": 0.0}, "sample.temperature=0.0 must be above 0"),
        ({"min_pass_rate": 0.8, "max_pass_rate": 0.7}, "the first no larger than the second"),
        ({"max_pass_rate": 1.5}, "must be shares"),
    ],
)
def test_values_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="sample") as caught:
        SampleConfig(**values)
    assert message in str(caught.value)


def test_the_loop_gives_what_every_loop_gives() -> None:
    assert sample.run.__annotations__ == {"config": RunConfig.__name__, "return": Outcome.__name__}
