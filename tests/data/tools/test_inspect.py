from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from sail_train.data.config import SourceConfig
from sail_train.data.quarantine import TooManyBadSamples
from sail_train.data.tools.charts import bin_edges, histogram, short
from sail_train.data.tools.inspect import run, seen_samples
from sail_train.data.tools.page import Page, render
from sail_train.data.tools.survey import packed_rows, shape_of
from sail_train.data.writer import write_shards
from sail_train.processor.processor import SailVLProcessor
from sail_train.types import Conversation, Message, Part


def test_samples_are_seen_as_the_model_sees_them(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    files = [("a.0.png", make.image(1, (50, 90))), ("a.json", make.json("red cat", images=1, answer="red"))]
    (sample,) = seen_samples([str(make.tar(tmp_path / "a.tar", files))], processor)
    (image,) = sample.visuals
    assert (image.size, image.resized, image.num_tokens) == ((50, 90), (56, 84), 6)
    (sheet,) = image.sheets
    assert Image.open(io.BytesIO(sheet.data)).size == (84, 56) and sheet.unit == 28
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


def page_of(folder: Path, arguments: list[str], expected: int = 0) -> str:
    page = folder / "page.html"
    assert run([*arguments, "--processor", str(folder / "model"), "--html", str(page)]) == expected
    return page.read_text()


def test_the_page_shows_sources_in_turn_with_their_rows_and_histograms(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    processor.save_pretrained(tmp_path / "model")
    first, second = (make.shards(tmp_path, name, range(10)) for name in ("first", "second"))
    limits = ["--limit", "4", "--rows", "3", "--seq-length", "160", "--max-patches", "24", "--measure", "12"]
    content = page_of(tmp_path, [first, f"other={second}", *limits])
    shown = re.findall(r"<h3><span class=source[^>]*>(\w+)</span>(\d+)</h3>", content)
    assert shown == [("first", "000000"), ("other", "000000"), ("first", "000001"), ("other", "000001")]
    assert "12 samples measured" in content and content.count("<figure class=chart>") == 5
    assert "tokens + patches" in content, "a tokenizer has no model whose FLOPs could be counted"
    assert content.count("<div class=row>") == 3 and re.search(r"row 0, \d+ samples", content)
    keys = re.findall(r'title="(first|other) (\d+): (\d+) tokens', content)
    assert {source for source, *_ in keys} == {"first", "other"}
    assert not re.search(r"<script|(src|href)=.(?!data:)|url\(", content), "no scripts, nothing from outside"


def test_a_row_holds_what_the_stream_would_put_there(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    sources = {"first": [make.shards(tmp_path, "first", range(20))]}
    rows = packed_rows(sources, processor, SourceConfig(), rows=4, seq_length=160, max_patches=24)
    assert len(rows) == 4 and all(rows)
    for row in rows:
        assert sum(each.tokens for each in row) <= 160 and sum(each.patches for each in row) <= 24
    with pytest.raises(TooManyBadSamples, match="too_long"):
        packed_rows(sources, processor, SourceConfig(), rows=1, seq_length=8, max_patches=24)


def test_a_page_says_why_it_has_no_rows(tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor) -> None:
    processor.save_pretrained(tmp_path / "model")
    content = page_of(tmp_path, [make.shards(tmp_path, "first", range(4)), "--seq-length", "8", "--rows", "2"])
    assert "no rows: " in content and "<div class=row>" not in content


def test_the_grids_of_tokens_and_tiles_are_drawn_where_they_are(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    tiled = SailVLProcessor(
        processor.tokenizer, image={"mode": "tile", "tile_size": 56, "max_tiles": 2}, video={"mode": "uniform"}
    )
    tiled.save_pretrained(tmp_path / "model")
    files = [("a.png", make.image(1, (56, 112))), ("a.json", make.json(images=1))]
    content = page_of(tmp_path, [str(make.tar(tmp_path / "a.tar", files)), "--rows", "0"])
    cut, thumbnail = re.findall(r'<path class=tokengrid d="([^"]*)"/><path class=tilegrid d="([^"]*)"/>', content)
    assert cut == ("M28 0V56M56 0V56M84 0V56M0 28H112", "M56 0V56")
    assert thumbnail == ("M28 0V56M0 28H56", "")
    assert "Packed rows" not in content


def test_frames_are_labelled_with_their_time(
    tmp_path: Path, encoded_video: Callable[..., bytes], processor: SailVLProcessor
) -> None:
    processor.save_pretrained(tmp_path / "model")
    message = Message(role="user", content=(Part(type="video"), Part(type="text", text="what")))
    answer = Message(role="assistant", content=(Part(type="text", text="red"),))
    write_shards([Conversation(key="f", source="x", messages=(message, answer), videos=(encoded_video(),))],
                 tmp_path / "films", "films", 1)  # fmt: skip
    content = page_of(tmp_path, [str(tmp_path / "films" / "*.tar"), "--rows", "0"])
    assert content.count(" s</text>") == 16 and ">0.0 s</text>" in content


def test_the_strip_shows_what_every_token_is(tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor) -> None:
    files = [("a.png", make.image(1, (56, 56))), ("a.json", make.json("red", images=1))]
    (sample,) = seen_samples([str(make.tar(tmp_path / "a.tar", files))], processor)
    content = render(Page(samples=[sample]))
    strip = re.findall(r'<span class=k-(\w+) style="width:([\d.]+)%" title="(\d+) \w+">', content)
    assert [kind for kind, *_ in strip] == ["read", "picture", "read", "trained", "read"]
    assert sum(float(width) for _, width, _ in strip) == pytest.approx(100, abs=0.01)
    assert sum(int(count) for *_, count in strip) == sum(token.count for token in sample.tokens)


def test_costs_are_the_models_flops_where_the_folder_has_one(tmp_path: Path, processor: SailVLProcessor) -> None:
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**part, "num_key_value_heads": 1, "head_dim": 8, "model_type": "qwen3", "rope_parameters": {}}
    values = {"vision_config": part, "text_config": text, "merge_size": 2, "reduction": "pixel_shuffle"}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({**values, "adapter_hidden_size": None}))
    shape = shape_of(tmp_path, 320)
    assert shape is not None and shape.language.layers == 1 and shape.vocab == 320
    (tmp_path / "model" / "config.json").write_text("{}")
    assert shape_of(tmp_path, 320) is None and shape_of(tmp_path / "gone", 320) is None


@pytest.mark.parametrize("low", [0.0, 1.0])
def test_bins_hold_every_value_whatever_the_range(low: float) -> None:
    values = [low, 3.0, 900.0, 1000.0, 1000.0]
    edges = bin_edges(min(values), max(values))
    assert edges[0] == low and edges[-1] == 1000.0 and edges == sorted(edges)
    drawn = re.findall(r"<title>a: (\d+) from", histogram({"a": values, "<b>": []}, "T"))
    assert sum(map(int, drawn)) == len(values)
    assert (edges[1] - edges[0] < 2) == (low == 1.0), "by powers only where there is no zero"
    assert histogram({"a": []}, "T") == "" and "1 from" in histogram({"a": [5.0]}, "T")


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (12.25, "12.2"), (1500.0, "1.5k"), (2e9, "2G"), (3e15, "3P")])
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_large_sheets_are_jpeg_and_small_ones_exact(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = str(make.tar(tmp_path / "a.tar", [("a.png", make.image(1, (28, 28))), ("a.json", make.json(images=1))]))
    (exact,) = seen_samples([shard], processor)
    assert exact.visuals[0].sheets[0].data.startswith(b"\x89PNG")
    monkeypatch.setattr("sail_train.data.tools.seen.LOSSLESS", 28 * 28 - 1)
    (large,) = seen_samples([shard], processor)
    assert large.visuals[0].sheets[0].data.startswith(b"\xff\xd8")


def test_a_page_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = str(make.tar(tmp_path / "a.tar", [("a.json", make.json())]))
    for page, message in (("/nope/x.html", "there is no folder /nope"), (str(tmp_path), "is a folder; name a file")):
        with pytest.raises(SystemExit):
            run([shard, "--processor", "/gone", "--html", page])
        assert message in capsys.readouterr().err
