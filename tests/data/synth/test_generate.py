"""The command: the same shards whatever the processes, in parts, interrupted; and what it refuses."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.synth import generate as module
from sail_train.data.synth.engines import fonts
from sail_train.data.synth.generate import SynthConfig, draw, generate
from sail_train.data.synth.run import run
from sail_train.rewards import verify


def config(**changes: Any) -> SynthConfig:
    return SynthConfig(**({"engine": "counting", "count": 10, "samples_per_shard": 4, "language": "mix"} | changes))


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "counting"
    generate(config(), out)
    return out


def test_shards_are_read_back_with_answers_that_are_right(made: Path) -> None:
    found = held_out({"counting": SourceConfig(shards=f"{made}/*.tar", max_bad=0)})
    assert [one.key for one in found] == [f"counting_{index:08d}" for index in range(10)]
    assert {one.mode for one in found} == {"think", "direct"}
    for one in found:
        assert verify(str(one.verifier), str(one.answer), one.messages[-1].text).value == 1.0
        assert one.meta["engine"] == "counting" and one.meta["facts"]["things"]
        assert one.meta["level"] in ("basic", "simple", "complex") and one.meta["language"] in ("en", "zh")


def test_processes_make_no_difference(made: Path, tmp_path: Path) -> None:
    generate(config(), tmp_path / "two", jobs=2)
    assert files(tmp_path / "two") == files(made)


def test_parts_make_no_difference(made: Path, tmp_path: Path) -> None:
    summary = generate(config(), tmp_path / "parts", part=(1, 2))
    assert summary["missing_shards"] == 2 and not (tmp_path / "parts" / "dataset.json").exists()
    summary = generate(config(), tmp_path / "parts", part=(0, 2))
    assert summary["missing_shards"] == 0 and files(tmp_path / "parts") == files(made)


def test_an_interrupted_run_goes_on(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(samples: Iterator[Any], total: int) -> Iterator[Any]:
        for place, sample in enumerate(samples):
            if total == 2 and place == 1:
                raise KeyboardInterrupt
            yield sample

    out = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        generate(config(), out, track=breaks)
    assert sorted(files(out)) == ["counting-000000.tar", "counting-000001.tar", "synth.json"], "nothing half is left"
    before = (out / "counting-000000.tar").stat().st_mtime_ns
    generate(config(), out)
    assert files(out) == files(made) and (out / "counting-000000.tar").stat().st_mtime_ns == before


def test_what_was_made_is_written_down(made: Path) -> None:
    written = json.loads((made / "dataset.json").read_text())
    assert (written["samples"], written["shards"]) == (10, 3)
    assert written["bytes"] == sum(path.stat().st_size for path in made.glob("*.tar"))
    assert written["source"] == "sail-train data synth counting" and written["license"]


def test_another_seed_gives_other_samples_and_a_longer_set_begins_with_the_shorter() -> None:
    answers = [[draw(config(seed=seed), index)[0].facts for index in range(3)] for seed in (0, 1)]
    assert answers[0] != answers[1]
    assert draw(config(count=99), 2)[0].facts == answers[0][2]


def test_one_level_language_and_mode_can_be_asked_for() -> None:
    for index in range(5):
        item, request, mode = draw(config(level="simple", language="zh", mode="direct"), index)
        assert (request.level, request.language, mode) == ("simple", "zh", "direct") and item.thought


def test_what_takes_no_steps_is_answered_directly() -> None:
    asked = config(engine="chart", language="en", mode="think", level="basic")
    modes = {(bool(item.thought), mode) for item, _, mode in (draw(asked, index) for index in range(20))}
    assert modes == {(True, "think"), (False, "direct")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "chrat"}, "engine='chrat' is none of .*did you mean 'chart'"),
        ({"level": "hard"}, "level='hard' is none of"),
        ({"language": "fr"}, "language='fr' is none of"),
        ({"mode": "thinks"}, "mode='thinks' is none of"),
        ({"count": 0}, "count=0 must be at least 1"),
        ({"samples_per_shard": 0}, "samples_per_shard=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"jobs": 0}, "jobs=0 must be at least 1"), ({"part": (2, 2)}, "part=2/2 must be I/N")],
)
def test_impossible_jobs_and_parts_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(config(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and not of this command"):
        generate(config(), tmp_path)
    with pytest.raises(ValueError, match="was begun with other options"):
        generate(config(seed=1), made)
    (tmp_path / "synth.json").write_text("{")
    with pytest.raises(ValueError, match="was begun with other options"):
        generate(config(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "synth.json"]


def test_the_command_writes_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["counting", "--count", "3", "--level", "basic", "--json", str(tmp_path / "out")]
    assert run(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["samples"] == 3 and told["shards"] == 1
    assert run([*arguments[:-2], str(tmp_path / "out")]) == 0
    assert "1 shards, 0.0 MiB" in capsys.readouterr().out
    for wrong, message in ((["cuonting", "x"], "did you mean 'counting'"), ([*arguments, "--part", "x"], "part='x'")):
        with pytest.raises(SystemExit) as ended:
            run(wrong)
        assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fonts, "_installed", dict)
    fonts.chinese.cache_clear()
    yield
    fonts.chinese.cache_clear()


def test_without_a_chinese_font_its_text_is_refused_with_what_to_install(no_fonts: None, tmp_path: Path) -> None:
    for language in ("zh", "mix"):
        with pytest.raises(ValueError, match="needs a font with Chinese .* apt-get install fonts-noto-cjk"):
            generate(config(engine="chart", language=language), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert generate(config(count=1, language="zh"), tmp_path / "counting")["shards"] == 1, "it writes no text"


def test_fonts_are_found_in_the_named_folders_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "wqy-microhei.ttc").write_bytes(b"")
    monkeypatch.setenv("SAIL_FONTS", str(tmp_path))
    monkeypatch.setattr(fonts, "FOLDERS", ())
    fonts.chinese.cache_clear()
    assert fonts.chinese() == fonts.Face(path=str(tmp_path / "deep" / "wqy-microhei.ttc"), index=0)
    fonts.chinese.cache_clear()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'sail-train\[synth\]'"):
        generate(config(engine="document", language="en"), tmp_path / "out")


def test_the_module_draws_in_the_worker_without_torch() -> None:
    import subprocess
    import sys

    code = f"import sys, {module.__name__}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
