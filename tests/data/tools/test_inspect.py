from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from sail_train.data.tools.inspect import run, seen_samples
from sail_train.processor.processor import SailVLProcessor


def test_samples_are_seen_as_the_model_sees_them(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    files = [("a.0.png", make.image(1, (50, 90))), ("a.json", make.json("red cat", images=1, answer="red"))]
    (sample,) = seen_samples([str(make.tar(tmp_path / "a.tar", files))], processor)
    (image,) = sample.visuals
    assert (image.size, image.resized, image.num_tokens) == ((50, 90), (56, 84), 6)
    assert Image.open(io.BytesIO(image.png)).size == (84, 56)
    assert [token.count for token in sample.tokens if token.id == processor.image_token_id] == [6]
    trained = "".join(token.text for token in sample.tokens if token.trained)
    assert trained == "<think>\n\n</think>\n\nred cat<|im_end|>"
    assert "answer='red'" in sample.facts


def test_the_page_escapes_what_strangers_wrote_and_shades_what_is_trained(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "<script>alert(1)</script>"
    shard = make.tar(
        tmp_path / "a.tar", [("k.0.png", make.image(1)), ("k.json", make.json(evil, images=1)), ("z.gif", b"")]
    )
    processor.save_pretrained(tmp_path / "model")
    page = tmp_path / "page.html"
    assert run([str(shard), "--processor", str(tmp_path / "model"), "--html", str(page)]) == 1
    content = page.read_text()
    assert "<script" not in content and "refused_file" in content
    assert 'src="data:image/png;base64,' in content and "IMG_CONTEXT&gt;</" in content
    assert '<b title="' in content and "2 samples in" in capsys.readouterr().out


def test_the_terminal_shows_samples_and_obeys_none_of_them(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [(f"{n}.json", make.json("[red]\x1b[2Jcat")) for n in range(9)]
    shard = make.tar(tmp_path / "a.tar", files)
    processor.tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert run([str(shard), "--processor", str(tmp_path / "tokenizer"), "--limit", "3"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed and printed.count("[red]") == 3 and "mode=None" in printed


def test_runs_of_image_tokens_are_folded(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [("a.0.png", make.image(1, (56, 56))), ("a.json", make.json(images=1)), ("b.json", b"{")]
    processor.save_pretrained(tmp_path / "model")
    assert run([str(make.tar(tmp_path / "a.tar", files)), "--processor", str(tmp_path / "model")]) == 1
    printed = capsys.readouterr().out
    assert "<IMG_CONTEXT>x4" in printed and "image 56x56 -> 56x56, 4 tokens" in printed and "bad_json" in printed


def test_wrong_arguments_and_help(tmp_path: Path, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(["/gone.tar", "--processor", str(tmp_path)])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit):
        run(["--help"])
    assert "example: sail-train data inspect" in capsys.readouterr().out
