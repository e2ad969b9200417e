"""Deduplication: what is a copy, which copy stays, small buckets against a plain comparison, and decontamination."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sail_train.cli import main
from sail_train.data.index import ensure_index
from sail_train.data.tools import duplicates
from sail_train.data.tools.dedupe import run
from sail_train.data.tools.near import NearOptions, block_pairs, near
from sail_train.data.tools.signature_files import Signatures, lay_out, sign_shard
from sail_train.data.tools.signatures import minhash, perceptual_hash, sign_image, text_digest, words

LONG = "the old man on the bench reads a paper while two dogs sleep beside him in the warm evening sun of a quiet town"


def picture(number: int, *, size: int = 96, kind: str = "PNG", quality: int = 90) -> bytes:
    """Smooth blobs that no other number has, at any size and in any format."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((size, size), Image.Resampling.BICUBIC).save(buffer, kind, quality=quality)
    return buffer.getvalue()


def test_a_perceptual_hash_survives_scaling_and_compression_and_tells_pictures_apart() -> None:
    """Not all copies are within the default 4 bits: docs/curation.md has what was measured on 400 pictures."""
    hashes = [sign_image(picture(n)).perceptual for n in range(60)]
    changes: list[dict[str, Any]] = [{"size": 320}, {"kind": "JPEG", "quality": 40}, {"kind": "WEBP", "size": 64}]
    for change in changes:
        bits = [(h ^ sign_image(picture(n, **change)).perceptual).bit_count() for n, h in enumerate(hashes)]
        assert sum(count <= 4 for count in bits) >= 54 and max(bits) <= 8
    assert min((a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]) > 8


def test_flat_pictures_hash_alike_and_are_told_apart_by_colour() -> None:
    black, white = (Image.new("RGB", (50, 50), colour) for colour in ("black", "white"))
    assert perceptual_hash(black) == perceptual_hash(white) == 0


def test_words_ignore_case_punctuation_and_width_and_split_chinese() -> None:
    assert words("Ｈello, WORLD! x_1") == ["hello", "world", "x", "1"]
    assert words("图中3只猫") == ["图", "中", "3", "只", "猫"]
    assert text_digest("A  cat.") == text_digest("a CAT") != text_digest("a dog") and text_digest("?!") == 0


def test_minhash_estimates_similarity() -> None:
    one = LONG.split()
    other = [*one[:-1], "city"]
    same = float((minhash(LONG) == minhash(" ".join(other))).mean())
    shingles = [{tuple(text[n : n + 5]) for n in range(len(text) - 4)} for text in (one, other)]
    assert abs(same - len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])) < 0.15
    assert (minhash("something else altogether that shares nothing") == minhash(LONG)).mean() < 0.1


@pytest.mark.parametrize("distance", [0, 1, 4, 9, 14])
def test_hashes_within_the_distance_always_share_a_key(distance: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        flipped = sum(1 << int(bit) for bit in rng.choice(64, distance, replace=False))
        assert any(not flipped & int(mask) for mask, _ in block_pairs(distance))


Made = Callable[..., str]


@pytest.fixture
def made(tmp_path: Path, make: SimpleNamespace) -> Made:
    """A shard of (picture or None, text) samples under tmp_path."""

    def shard(name: str, *samples: tuple[bytes | None, str]) -> str:
        files: list[tuple[str, bytes]] = []
        for n, (image, text) in enumerate(samples):
            files += [(f"k{n}.png", image)] if image else []
            files.append((f"k{n}.json", make.json(text, images=int(image is not None))))
        return str(make.tar(tmp_path / f"{name}.tar", files))

    return shard


def repeats(shard: str) -> list[str | None]:
    column: list[str | None] = ensure_index(shard).column("duplicate_of").to_pylist()
    return column


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_near_copies_within_and_across_sources_are_found_and_the_first_stays(
    made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = made("a/0", (picture(1), LONG), (picture(2), LONG), (picture(1, kind="JPEG"), LONG + " today"))
    second = made(
        "b/0", (picture(1, size=200), LONG), (picture(1), "What is the colour of the left dog?"), (None, LONG)
    )
    third = made("b/1", (None, LONG.upper() + "!"), (picture(3), "no"), (picture(3), "no"))
    argv = [first, second, third, "--json", "--work", str(tmp_path / "work"), "--rows", "3"]
    assert main(["data", "dedupe", *argv]) == 0
    assert repeats(first) == ["", "", f"{first}#0"]
    assert repeats(second) == [f"{first}#0", "", ""]
    assert repeats(third) == [f"{second}#2", "", f"{third}#1"]
    counts = report(capsys)["counts"]
    folders = tmp_path / "a", tmp_path / "b"
    assert counts["samples"] == 9 and counts["duplicates"] == 4 and counts["duplicates by source"] == {
        f"within {folders[0]}": 1, f"{folders[1]} repeats {folders[0]}": 1, f"within {folders[1]}": 2
    }  # fmt: skip
    # the other order keeps the other copy
    assert run([third, second, first, *argv[3:]]) == 0
    assert repeats(first)[0] == f"{second}#0" and repeats(second)[0] == "" and repeats(third)[0] == ""


def test_exact_copies_are_those_of_the_same_pixels_and_words(made: Made, tmp_path: Path) -> None:
    webp = io.BytesIO()
    Image.open(io.BytesIO(picture(1))).save(webp, "WEBP", lossless=True)
    shard = made("a", (picture(1), "A cat."), (webp.getvalue(), "a  CAT"), (picture(1, size=97), "a cat"))
    assert run([shard, "--exact"]) == 0 and repeats(shard) == ["", f"{shard}#0", ""]
    assert run([shard, "--reset"]) == 0 and repeats(shard) == ["", f"{shard}#0", f"{shard}#0"]


def test_what_one_rule_found_is_replaced_by_another_only_when_asked(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = made("a", (picture(1), "one"), (picture(1), "two"), (picture(2), "two"))
    assert run([shard, "--by", "image", "--json"]) == 0
    assert "duplicates before, replaced" not in report(capsys)["counts"]
    assert run([shard, "--by", "text", "--json"]) == 1
    said = report(capsys)["failed"][shard]
    assert "duplicate_of was found with `--by image --distance 4 --similarity 0.8`" in said and "--reset" in said
    assert repeats(shard) == ["", f"{shard}#0", ""]
    for argv in (["--by", "image"], ["--by", "text", "--exact", "--reset"]):
        assert run([shard, *argv, "--json"]) == 0
        assert report(capsys)["counts"]["duplicates before, replaced"] == 1
    assert repeats(shard) == ["", "", f"{shard}#1"]


@pytest.mark.parametrize(("by", "expected"), [("sample", [0, 0, 0]), ("image", [0, 0, 1]), ("text", [0, 1, 0])])
def test_what_counts_as_a_copy_is_said_by_by(made: Made, by: str, expected: list[int]) -> None:
    shard = made("a", (picture(1), LONG), (picture(2), LONG), (picture(1), "something else"))
    assert run([shard, "--by", by]) == 0
    assert [int(bool(value)) for value in repeats(shard)] == expected


def test_a_sample_that_cannot_be_read_is_neither(made: Made, make: SimpleNamespace, tmp_path: Path) -> None:
    files = [("a.png", make.broken_image()), ("a.json", make.json(images=1)), ("b.json", make.json())]
    shard = str(make.tar(tmp_path / "x.tar", files))
    assert run([shard]) == 0 and repeats(shard) == [None, ""]


def plain(signatures: Signatures, options: NearOptions) -> list[int]:
    """The same by comparing everything with everything."""
    targets = [-1] * len(signatures)
    for later in range(len(signatures)):
        earlier = np.array([n for n in range(later) if targets[n] < 0], dtype=np.int64)
        hits = earlier[near(signatures, np.full(len(earlier), later), earlier, options)]
        if len(hits):
            targets[later] = int(hits[0])
    return targets


@pytest.mark.parametrize("by", ["sample", "image", "text"])
@pytest.mark.parametrize("rows", [7, 50, 10_000])
def test_small_buckets_find_what_comparing_everything_finds(
    by: str, rows: int, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    texts = [f"{LONG} number {n} of a list of many" for n in range(3)]
    draw = [
        (picture(int(rng.integers(8)), size=int(rng.integers(40, 60))), texts[int(rng.integers(3))]) for _ in range(70)
    ]
    shards = [made(f"s{n}", *draw[n * 35 : n * 35 + 35]) for n in range(2)]
    work, options = str(tmp_path / "work"), NearOptions(by=by)
    for shard in shards:
        sign_shard(shard, work, "messages")
    signatures = lay_out(shards, work, "all")
    for number in range(options.num_keys):
        duplicates.find_pairs(str(number), f"{work}/all", work, options, rows)
    targets = duplicates.resolve(work, options.num_keys, len(signatures), rows)[: len(signatures)].tolist()
    assert targets == plain(signatures, options) and max(targets) >= 0


def test_a_crowd_of_copies_is_found_though_not_compared_each_with_each(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(duplicates, "CROWD", 4)
    crowd = [(picture(1, size=40 + n), LONG) for n in range(20)]
    shard = made("a", *crowd, *[(picture(1, size=40), LONG)] * 5)
    assert run([shard, "--json"]) == 0
    assert repeats(shard) == ["", *[f"{shard}#0"] * 24] and report(capsys)["pairs"]["crowded"] > 0


def test_signatures_are_made_once_and_again_for_a_shard_that_changed(
    made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shards = [made(f"a/{n}", (picture(n), LONG)) for n in range(3)]
    argv = [*shards, "--json", "--work", str(tmp_path / "w")]
    with pytest.raises(ValueError, match="--part is for --sign-only"):
        run([*argv, "--part", "0/2"])
    for part in ("0/2", "1/2"):
        assert run([*argv, "--sign-only", "--part", part]) == 0
    capsys.readouterr()
    assert run([*argv, "--jobs", "2"]) == 0 and report(capsys)["signed"] == {"shards skipped": 3}
    (tmp_path / "a" / "1.index.parquet").unlink()
    made("a/1", (picture(0), LONG))
    assert run(argv) == 0 and report(capsys)["signed"]["signed"] == 1
    assert repeats(shards[1]) == [f"{shards[0]}#0"]


def test_signatures_that_are_missing_are_asked_for(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run every --part with --sign-only first"):
        lay_out([made("a", (None, LONG))], str(tmp_path / "w"), "all")


def test_samples_of_an_evaluation_set_are_marked_by_image_and_by_question(
    made: Made, make: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    question = "How many of the boats in the harbour have a red sail and a white hull in this photograph"
    short = "Which of the two brown dogs sleeps beside him"

    def asked(image: bytes | None, text: str) -> bytes:
        content = [{"type": "image"}] * bool(image) + [{"type": "text", "text": text}]
        return json.dumps(
            {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "4"}]}
        ).encode()

    held = [("a.png", picture(1)), ("a.json", asked(picture(1), question)), ("b.json", asked(None, short)),
            ("c.json", asked(None, "What colour is it?"))]  # fmt: skip
    make.tar(tmp_path / "eval" / "boats.tar", held)
    train = [
        ("a.png", picture(1, size=300)), ("a.json", asked(picture(1), "Is it night?")),
        ("b.json", asked(None, "Look. " + question.upper() + "?")),
        ("c.png", picture(1)), ("c.json", asked(picture(1), question)),
        ("d.json", asked(None, short)), ("e.json", asked(None, "What colour is it?")),
        ("f.json", asked(None, short + " and why")), ("g.pickle", b""),
    ]  # fmt: skip
    shard = str(make.tar(tmp_path / "train.tar", train))
    argv = [shard, "--against", f"boats={tmp_path}/eval/*.tar", "--no-duplicates", "--json"]
    assert run(argv) == 0
    values = ensure_index(shard).column("contaminated").to_pylist()
    assert values == ["boats:image", "boats:text", "boats:image+text", "boats:text", "", "", None]
    found = report(capsys)
    assert found["counts"]["contaminated"] == 4
    assert found["counts"]["contaminated by"] == {"boats": {"image": 2, "text": 3}}
    assert found["evaluation samples"] == {"boats": 3}


def test_each_evaluation_set_keeps_its_findings_until_it_is_named_again(
    made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sets = {
        name: made(name, *((picture(n), "x") for n in numbers)) for name, numbers in {"a": [1, 2], "b": [2, 3]}.items()
    }
    shard = made("train", *((picture(n), f"y {n}") for n in range(5)))

    def against(*names: str, **replaced: str) -> dict[str, Any]:
        argv = [f"--against={name}={replaced.get(name, sets[name])}" for name in names]
        assert run([shard, "--no-duplicates", "--json", *argv]) == 0
        counts: dict[str, Any] = report(capsys)["counts"]
        return counts

    def column() -> list[str]:
        values: list[str] = ensure_index(shard).column("contaminated").to_pylist()
        return values

    first = against("a")
    assert column() == ["", "a:image", "a:image", "", ""] and "replaced of an earlier run" not in first
    second = against("b")
    assert column() == ["", "a:image", "a:image,b:image", "b:image", ""]
    assert second["kept of other sets"] == {"a": 2} and second["contaminated"] == 3
    assert second["contaminated by"] == {"b": {"image": 2, "text": 0}}
    third = against("a", a=made("less", (picture(4), "x")))
    assert column() == ["", "", "b:image", "b:image", "a:image"]
    assert third["replaced of an earlier run"] == {"a": 2} and third["kept of other sets"] == {"b": 2}
    assert against("b", "a")["contaminated"] == 3


def test_wording_that_a_whole_set_shares_contaminates_nothing(make: SimpleNamespace, tmp_path: Path) -> None:
    wording = "please answer with the letter of the right option from the given choices and with nothing else at all"

    def asked(text: str) -> bytes:
        return json.dumps({"messages": [{"role": "user", "content": text}]}).encode()

    held = [(f"k{n}.json", asked(f"{n} {wording}")) for n in range(12)]
    make.tar(tmp_path / "eval.tar", held)
    shard = str(
        make.tar(tmp_path / "train.tar", [("a.json", asked(f"x {wording}")), ("b.json", asked(f"3 {wording}"))])
    )
    assert run([shard, "--against", f"e={tmp_path}/eval.tar", "--no-duplicates"]) == 0
    assert ensure_index(shard).column("contaminated").to_pylist() == ["", "e:text"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--by", "sampel"], "did you mean 'sample'"),
        (["--distance", "20"], "--distance 20"),
        (["--similarity", "0"], "--similarity 0"),
        (["--rows", "0"], "--rows 0"),
        (["--against", "/gone.tar"], "does not exist"),
        (["--against", "a,b=SHARD"], "the set's name 'a,b' should be letters"),
        (["--work", "SHARD/x"], "--work .* is no folder"),
    ],
)
def test_wrong_arguments_say_what_to_do(made: Made, argv: list[str], message: str) -> None:
    shard = made("a", (None, "x"))
    with pytest.raises(ValueError, match=message):
        run([shard, *(argument.replace("SHARD", shard) for argument in argv)])
