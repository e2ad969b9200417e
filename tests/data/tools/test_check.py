from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from sail_train.data.tools.check import check_shards, run
from sail_train.processor.processor import SailVLProcessor
from sail_train.processor.tokenizer import train_tokenizer


def test_good_shards_pass_with_their_numbers(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = make.shards(tmp_path, "made", range(12), per_shard=5, mode="direct")
    processor.save_pretrained(tmp_path / "run" / "model")
    assert run([pattern, "--processor", str(tmp_path / "run"), "--seq-length", "500", "--strict"]) == 0
    printed = capsys.readouterr().out
    assert "3 shards, 12 good samples (12 direct), 8 images" in printed and "trained tokens" in printed
    report = check_shards([pattern], processor=processor)
    assert report.lengths["patches"][-1] == 4 and report.lengths["tokens"][0] > 10


def test_everything_that_training_would_refuse_is_found(
    mixture_folder: Path, processor: SailVLProcessor, make: SimpleNamespace
) -> None:
    report = check_shards([f"{mixture_folder}/second/*.tar"], processor=processor, seq_length=160)
    assert report.bad == {"image_undecodable": 1, "bad_json": 1, "refused_file": 1, "too_long": 1}
    assert "zbad.tar 'c'" in report.examples["refused_file"][0]
    assert not report.is_good(strict=False) and report.samples == 41


def test_bad_shards_fail_with_examples_and_as_json(
    tmp_path: Path, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = make.tar(tmp_path / "a.tar", [(f"{n}.json", b"{") for n in range(5)] + [("x.json", make.json())])
    assert run([str(shard)]) == 1
    assert "5 bad: bad_json" in (printed := capsys.readouterr().out) and printed.count("a.tar '") == 3
    assert run([str(shard), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["bad"] == {"bad_json": 5}


def test_repetitions_are_reported_and_fail_when_strict(
    tmp_path: Path, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        make.tar(tmp_path / f"{name}.tar", [("x.json", make.json()), (f"{name}.json", make.json(name))])
    pattern = str(tmp_path / "*.tar")
    assert run([pattern]) == 0 and run([pattern, "--strict"]) == 1
    assert "1 keys (within a folder) and 1 whole samples are repeated" in capsys.readouterr().out


def test_keys_that_two_sources_share_are_no_repetition(tmp_path: Path, make: SimpleNamespace) -> None:
    for folder in ("a", "b"):
        make.tar(tmp_path / folder / "0.tar", [("00000000.json", make.json(folder))])
    report = check_shards([str(tmp_path / "*" / "*.tar")])
    assert report.repeated_keys == 0 and report.is_good(strict=True)


def test_samples_that_say_nothing_are_found_without_a_processor(tmp_path: Path, make: SimpleNamespace) -> None:
    def talk(*turns: tuple[str, str], **more: str) -> bytes:
        return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns], **more}).encode()

    asked, said, nothing = ("user", "how many?"), ("assistant", "two"), ("assistant", " \n")
    samples = [
        talk(asked, said), talk(asked, nothing), talk(asked, nothing, asked, said), talk(asked, ("assistant", "")),
        talk(asked), talk(asked, answer=" "), talk(asked, answer="2"), talk(asked, said, asked),
    ]  # fmt: skip
    shard = make.tar(tmp_path / "a.tar", [(f"k{n}.json", content) for n, content in enumerate(samples)])
    report = check_shards([str(shard)])
    assert report.bad == {"empty_answer": 3, "no_answer": 2} and report.samples == 3
    assert "'k2': answer 1 of 2 has no text" in report.examples["empty_answer"][1]


def test_captions_are_checked_in_their_format(tmp_path: Path, make: SimpleNamespace) -> None:
    shard = make.tar(tmp_path / "a.tar", [("a.png", make.image(1)), ("a.txt", b"a cat")])
    assert run([str(shard), "--format", "caption"]) == 0 and run([str(shard)]) == 1


def test_no_sample_at_all_is_not_good(tmp_path: Path, make: SimpleNamespace) -> None:
    assert run([str(make.tar(tmp_path / "a.tar", []))]) == 1


def test_the_very_same_image_is_counted_and_fails_nothing(
    tmp_path: Path, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        files = [(f"{name}.png", make.image(1)), (f"{name}.json", make.json(name, images=1))]
        make.tar(tmp_path / f"{name}.tar", files)
    assert run([str(tmp_path / "*.tar"), "--strict"]) == 0
    assert "1 of 2 images were met before, byte for byte" in capsys.readouterr().out


def test_processes_and_parts_find_the_same(mixture_folder: Path, processor: SailVLProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path / "model")
    pattern = [f"{mixture_folder}/*/*.tar"]
    alone = check_shards(pattern, processor=tmp_path / "model", seq_length=160)
    assert check_shards(pattern, processor=tmp_path / "model", seq_length=160, jobs=2) == alone
    parts = [check_shards(pattern, processor=processor, seq_length=160, part=(n, 3)) for n in range(3)]
    assert sum(part.samples for part in parts) == alone.samples == 101
    assert sum((part.bad for part in parts), start=Counter()) == alone.bad


def test_a_shard_that_cannot_be_read_fails_the_check_by_name(
    tmp_path: Path, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    make.tar(tmp_path / "a.tar", [("x.json", make.json())])
    (tmp_path / "b.tar").write_bytes(b"\x1f\x8b gzip")
    assert run([str(tmp_path / "*.tar")]) == 1
    printed = capsys.readouterr().out
    assert "1 good samples" in printed and "cannot be read" in printed and "gunzip it" in printed


def test_a_sources_own_limits_are_held_to(
    tmp_path: Path, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = train_tokenizer(["red cat"] * 4, 300)
    tiles = SailVLProcessor(tokenizer, image={"mode": "tile", "tile_size": 28, "max_tiles": 6, "max_total_tiles": 6})
    shard = make.tar(tmp_path / "a.tar", [("a.png", make.image(1, (56, 84))), ("a.json", make.json(images=1))])
    for limit, patches in ((None, 28), (1, 4)):
        report = check_shards([str(shard)], processor=tiles, max_tiles=limit)
        assert report.lengths["patches"][-1] == patches
    with pytest.raises(SystemExit):
        run([str(shard), "--fps", "0"])
    assert "fps=0.0 must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["/gone.tar"], "does not exist"),
        (["SHARD", "--format", "captoin"], "did you mean 'caption'"),
        (["SHARD", "--seq-length", "100"], "--seq-length needs --processor"),
        (["SHARD", "--max-patches", "100"], "--max-patches needs --processor"),
        (["SHARD", "--max-tiles", "2"], "--max-tiles needs --processor"),
        (["SHARD", "--processor", "/gone"], "--processor /gone is not a folder"),
        (["SHARD", "--processor", "FOLDER"], "holds no tokenizer that loads"),
    ],
)
def test_wrong_arguments_say_what_to_do(
    tmp_path: Path, make: SimpleNamespace, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = make.tar(tmp_path / "a.tar", [("a.json", make.json())])
    with pytest.raises(SystemExit) as stopped:
        run([{"SHARD": str(shard), "FOLDER": str(tmp_path)}.get(argument, argument) for argument in argv])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--help"])
    assert "example: sail-train data check" in capsys.readouterr().out
