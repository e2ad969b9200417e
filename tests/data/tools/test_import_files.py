"""Images of an import: formats made PNG, links that are followed or named, and refused files that are tried again."""

from __future__ import annotations

import io
import json
import struct
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from records_made import import_list, llava

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.index import index_path
from sail_train.data.tools import first_frame
from sail_train.data.tools.first_frame import as_png
from sail_train.data.tools.import_plan import ImportOptions
from sail_train.data.tools.importing import ImportReport, import_records, run
from sail_train.data.tools.media import load_image
from sail_train.processor.images import open_image
from sail_train.types import BadSample

PIXELS = np.random.default_rng(1).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def saved(kind: str, pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, kind, **options)
    return made.getvalue()


def frames(kind: str, count: int = 3) -> bytes:
    others = [Image.fromarray(np.full_like(PIXELS, 40 * place)) for place in range(1, count)]
    return saved(kind, save_all=True, append_images=others, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "PNG"])
def test_the_first_frame_becomes_a_png_where_that_is_asked_for(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = saved("BMP") if kind == "BMP" else frames(kind)
    (tmp_path / "a.bin").write_bytes(content)
    (tmp_path / "b.png").write_bytes(saved("PNG"))
    records = [llava("<image><image>", image=["b.png", "a.bin"]), llava(image="b.png")]
    _, found, (refused,) = import_list(tmp_path, records)
    assert refused["reason"] == ("image_animated" if kind in ("WEBP", "PNG") else "image_format") and len(found) == 1
    assert refused["detail"].endswith("; --convert makes its first frame a PNG")
    assert run([str(tmp_path / "records.json"), str(tmp_path / "told")]) == 1
    assert "1 are of formats that training does not read: --convert --overwrite makes" in capsys.readouterr().out
    report, found, left = import_list(tmp_path, records, convert=True, overwrite=True)
    assert left == [] and report.converted == {kind: 1}
    assert found[0].meta["converted"] == {"1": kind} and "converted" not in found[1].meta
    assert found[0].images[0] == saved("PNG") and found[0].images[1].startswith(b"\x89PNG")
    shown = np.asarray(open_image(found[0].images[1])).astype(int)
    assert shown.shape == PIXELS.shape and (kind == "GIF" or np.array_equal(shown, PIXELS))
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["converted"] == {kind: 1}


def test_what_was_good_already_keeps_its_bytes_and_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(saved("WEBP"))
    (tmp_path / "b.gif").write_bytes(b"GIF89a, but no more")
    (tmp_path / "c.gif").write_bytes(frames("GIF", 1)[:-100])
    (tmp_path / "d.svg").write_bytes(b"<svg/>")
    report, (found,), refused = import_list(
        tmp_path, [llava(image=name) for name in ("a.webp", "b.gif", "c.gif", "d.svg")], convert=True
    )
    assert found.images == (saved("WEBP"),) and not report.converted
    assert [line["reason"] for line in refused] == ["image_unreadable", "image_undecodable", "image_unreadable"]


def test_an_orientation_is_applied_once_and_transparency_is_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    moving: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (20, 12))], "exif": exif}
    for turned in (saved("TIFF", exif=exif), saved("WEBP", lossless=True, **moving), saved("PNG", **moving)):
        assert np.array_equal(np.asarray(open_image(as_png(turned)[0])), np.rot90(PIXELS, 3))
    clear = np.zeros((4, 4, 4), dtype=np.uint8)
    assert np.asarray(open_image(as_png(saved("TIFF", clear))[0])).min() == 255


@pytest.mark.parametrize("error", [TypeError("'str' is no integer"), struct.error("short"), KeyError("tile")])
def test_whatever_a_decoder_trips_over_refuses_the_one_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def trip(self: Any) -> None:
        raise error

    (tmp_path / "a.gif").write_bytes(frames("GIF"))
    with monkeypatch.context() as patched:
        patched.setattr(GifImageFile, "load", trip)
        report, _, (refused,) = import_list(tmp_path, [llava(image="a.gif"), llava("x")], convert=True)
    assert report.written == 1
    assert (refused["reason"], refused["detail"]) == ("image_undecodable", f"GIF: {type(error).__name__}: {error}")


def test_an_exif_block_that_cannot_be_written_again_turns_the_picture_all_the_same(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    moving = {"save_all": True, "append_images": [Image.new("RGB", (20, 12))], "exif": exif, "lossless": True}
    content = saved("WEBP", **moving)
    # the rational is text now, which is read without complaint
    broken = content.replace(b"\x1a\x01\x05\x00", b"\x1a\x01\x02\x00").replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02")
    assert broken != content
    assert np.array_equal(np.asarray(open_image(as_png(broken)[0])), np.rot90(PIXELS, 3))


def test_a_picture_over_the_limits_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    small = saved("BMP")
    for limit in ("MAX_PIXELS", "MAX_SIDE"):
        with monkeypatch.context() as patched:
            patched.setattr(first_frame, limit, 19)
            patched.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
            with pytest.raises(BadSample, match="image_too_large: 20x12"):
                as_png(small)
    bomb = bytearray(saved("BMP"))
    bomb[18:26] = (30_000).to_bytes(4, "little") * 2
    with pytest.raises(BadSample, match="image_too_large"):
        as_png(bytes(bomb))
    with pytest.raises(BadSample, match="image_undecodable: .*floating point"):
        as_png(saved("TIFF", np.zeros((4, 4), dtype=np.float32)))


def test_a_png_that_grew_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gif").write_bytes(frames("GIF"))
    monkeypatch.setattr("sail_train.data.tools.media.as_png", lambda content: (b"x" * 2000, "GIF"))
    monkeypatch.setattr("sail_train.data.tools.media.MAX_MEMBER_BYTES", 1999)
    (tmp_path / "a.gif").write_bytes(saved("GIF", PIXELS[:4, :4]))
    _, _, (refused,) = import_list(tmp_path, [llava(image="a.gif")], convert=True)
    assert (refused["reason"], refused["detail"]) == ("image_too_large", "2000 bytes as PNG, of 1999")


def test_pillow_has_nothing_to_say_beside_the_refusal(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _, _, (refused,) = import_list(tmp_path, [llava(image="a.png")])
    assert refused["reason"] == "image_too_large"
    assert [each for each in told if issubclass(each.category, Image.DecompressionBombWarning)] == []


@pytest.fixture
def cache(tmp_path: Path, make: SimpleNamespace) -> Path:
    """As the Hugging Face cache keeps files: links to blobs."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "blobs" / "0f3").write_bytes(make.image(1))
    (tmp_path / "snapshots" / "a.png").symlink_to("../blobs/0f3")
    (tmp_path / "snapshots" / "gone.png").symlink_to("../blobs/7a1")
    (tmp_path / "snapshots" / "r.json").write_text(json.dumps([llava(image="a.png"), llava(image="gone.png")]))
    return tmp_path


def imported(folder: Path, *images: Path, **more: Any) -> tuple[ImportReport, list[dict[str, Any]]]:
    report = import_records(
        ImportOptions(input=folder / "r.json", output=folder / "out", prefix="set", images=images, **more)
    )
    lines = report.refused_file.read_text().splitlines() if report.refused_file else []
    return report, [json.loads(line) for line in lines]


def test_a_link_is_followed_into_folders_that_were_named_alone(cache: Path, make: SimpleNamespace) -> None:
    links, blobs = cache / "snapshots", cache / "blobs"
    _, (first, _) = imported(links)
    assert first["reason"] == "outside_folder"
    assert f"is a link to {blobs / '0f3'}, outside of {links};" in first["detail"]
    assert first["detail"].endswith(f"name its folder too: --images {links} --images {blobs}")
    report, (gone,) = imported(links, links, blobs, overwrite=True)
    assert report.written == 1 and gone["reason"] == "image_missing"
    assert gone["detail"] == f"{links / 'gone.png'} is a link to {blobs / '7a1'}, which does not exist"
    (found,) = held_out({"set": SourceConfig(shards=str(links / "out" / "*.tar"))})
    assert found.images == (make.image(1),)
    (blobs / "0f3").rename(cache / "secret.png")
    (links / "a.png").unlink()
    (links / "a.png").symlink_to(cache / "secret.png")
    assert imported(links, links, blobs, overwrite=True)[0].refused == {"outside_folder": 1, "image_missing": 1}


def test_links_in_a_circle_refuse_the_one_record(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    report, _, refused = import_list(tmp_path, [llava(image="a.png"), llava("<video>", video="b.png"), llava("x")])
    assert [line["reason"] for line in refused] == ["image_missing", "video_missing"] and report.written == 1
    assert "a.png" in refused[0]["detail"]


@pytest.mark.parametrize("error", [RuntimeError("Symlink loop"), OSError(40, "Too many levels of symbolic links")])
def test_links_in_a_circle_are_refused_whatever_python_raises_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def resolve(self: Path, strict: bool = False) -> Path:
        raise error

    folder = tmp_path.resolve()
    monkeypatch.setattr(Path, "resolve", resolve)
    with pytest.raises(BadSample, match="image_missing: 'a.png': .*[Ss]ym"):
        load_image("a.png", [folder])


def test_images_are_looked_for_in_several_folders_in_turn(pictures: Path, make: SimpleNamespace) -> None:
    (pictures / "r.json").write_text(
        json.dumps([llava(image="a.png"), llava(image="b.png"), llava(image="../../a.png")])
    )
    report, (outside,) = imported(pictures, pictures / "sub", pictures)
    assert report.written == 2 and (outside["record"], outside["reason"]) == (2, "outside_folder")


def test_refused_files_are_tried_again_when_that_is_asked_for(
    pictures: Path, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [llava(image="a.png"), llava(image="gone.png"), llava(image="a.png"), llava("x", answer=" ")]
    (pictures / "r.json").write_text(json.dumps(records))
    more: dict[str, Any] = {"samples_per_shard": 2}
    imported(pictures, **more)
    first, second = (pictures / "out" / f"set-00000{place}.tar" for place in (0, 1))
    before = second.stat().st_mtime_ns
    Path(index_path(str(first))).write_bytes(b"of the shard as it was")
    (pictures / "gone.png").write_bytes(make.image(5))
    again, _ = imported(pictures, **more)
    assert (again.written, again.skipped) == (2, 2)
    mended, _ = imported(pictures, retry_refused=True, **more)
    assert (mended.written, mended.skipped, mended.refused) == (3, 1, {"empty_answer": 1})
    assert second.stat().st_mtime_ns == before and not Path(index_path(str(first))).exists()
    assert len(held_out({"set": SourceConfig(shards=str(pictures / "out" / "*.tar"))})) == 3

    (pictures / "gone.png").unlink()
    command = [str(pictures / "r.json"), str(pictures / "other"), "--max-refused", "1"]
    assert run(command) == 0
    assert "1 were refused for their files: mend those, then --retry-refused" in capsys.readouterr().out
    (pictures / "gone.png").write_bytes(make.image(5))
    assert run([*command, "--retry-refused"]) == 0
    printed = capsys.readouterr().out
    assert "= 3 written + 1 refused" in printed and "--retry-refused" not in printed


def test_a_shard_whose_records_are_all_refused_now_is_gone(pictures: Path) -> None:
    (pictures / "r.json").write_text(json.dumps([llava(image="a.png"), llava(image="gone.png")]))
    imported(pictures)
    (pictures / "a.png").unlink()
    report, _ = imported(pictures, retry_refused=True)
    assert report.written == 0 and report.complete and not (pictures / "out" / "set-000000.tar").exists()
