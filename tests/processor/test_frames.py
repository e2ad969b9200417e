"""What files that PyAV writes, whole, damaged and disguised, say of themselves and show."""

from __future__ import annotations

import builtins
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from sail_train.processor import container, video
from sail_train.processor import frames as frames_module
from sail_train.processor.frames import frames
from sail_train.processor.video import FramePlan, VideoInfo, plan, probe
from sail_train.types import BadSample
from sail_train.visual import ImageSpec, VideoSpec

SPEC = ImageSpec(patch_size=4, min_pixels=64, max_pixels=64 * 64)
FORMATS = [
    ("mp4", "libx264"),
    ("mov", "mpeg4"),
    ("mkv", "libx264"),
    ("webm", "libvpx"),
    ("avi", "mpeg4"),
    ("avi", "libx264"),
]
STEP = 4
"""Of brightness from one frame to the next, so that a picture tells which frame it is."""


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., bytes]:
    def make(
        fmt: str = "mp4",
        codec: str = "libx264",
        *,
        count: int = 60,
        fps: int = 30,
        size: tuple[int, int] = (32, 32),
        gop: int = 10,
        times: Sequence[int] | None = None,
        rotation: float | None = None,
        **options: str,
    ) -> bytes:
        """(height, width) frames that grow brighter by STEP; `times` are theirs in milliseconds."""
        path = tmp_path / f"made.{fmt}"
        with av.open(str(path), "w", options=options) as made:
            stream = made.add_stream(codec, rate=fps)
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.gop_size = gop
            stream.bit_rate = 4_000_000  # so that brightness comes through
            if rotation is not None:
                stream.set_display_rotation(rotation)
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for i in range(count):
                pixels = np.full((*size, 3), i * STEP % 256, dtype=np.uint8)
                if rotation is not None:
                    pixels[: size[0] // 2] = 0  # dark above
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[i], Fraction(1, 1000)
                made.mux(stream.encode(frame))
            made.mux(stream.encode())
        return path.read_bytes()

    return make


@pytest.fixture
def make_audio(tmp_path: Path) -> Callable[..., bytes]:
    def make(fmt: str = "mp4", *, empty_video: bool = False, cover: bool = False) -> bytes:
        path = tmp_path / f"sound.{fmt}"
        with av.open(str(path), "w") as made:
            stream = made.add_stream("aac", rate=16_000)
            if empty_video or cover:
                pictures = made.add_stream("mjpeg" if cover else "mpeg4", rate=30)
                pictures.height = pictures.width = 32
                pictures.pix_fmt = "yuvj420p" if cover else "yuv420p"
            if cover:
                pictures.disposition = av.stream.Disposition.attached_pic
                image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                made.mux(pictures.encode(image.reformat(format="yuvj420p")))
                made.mux(pictures.encode())
            for _ in range(10):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                sound.sample_rate = 16_000
                made.mux(stream.encode(sound))
            made.mux(stream.encode())
        return path.read_bytes()

    return make


def planned(seconds: Sequence[float], side: int = 32) -> FramePlan:
    return FramePlan(seconds=tuple(seconds), height=side, width=side, patch_size=4)


def shown(data: bytes, seconds: Sequence[float]) -> list[int]:
    """Which frame of a film of growing brightness each planned one is."""
    return [round(float(np.asarray(image).mean()) / STEP) for image in frames(data, planned(seconds))]


def reason(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(BadSample) as caught:
        list(call(*arguments))
    return caught.value.reason


@pytest.mark.parametrize(("fmt", "codec"), FORMATS)
def test_every_format_says_its_size_and_length(make_video: Callable[..., bytes], fmt: str, codec: str) -> None:
    info = probe(make_video(fmt, codec, size=(48, 64)))
    assert (info.height, info.width, info.frames) == (48, 64, 60)
    assert info.seconds == pytest.approx(2.0, abs=0.002) and info.fps == pytest.approx(30, rel=1e-3)


@pytest.mark.parametrize(("fmt", "codec"), FORMATS)
def test_the_frames_of_the_plan_are_shown(make_video: Callable[..., bytes], fmt: str, codec: str) -> None:
    data = make_video(fmt, codec)
    made = plan(probe(data), VideoSpec(), SPEC)
    pictures = list(frames(data, made))
    assert {picture.size for picture in pictures} == {(made.width, made.height)}
    assert {picture.mode for picture in pictures} == {"RGB"}
    found = [round(float(np.asarray(picture).mean()) / STEP) for picture in pictures]
    assert found == [0, 4, 8, 12, 16, 20, 24, 28, 31, 35, 39, 43, 47, 51, 55, 59]


@pytest.mark.parametrize(("fmt", "codec"), FORMATS)
def test_a_video_of_one_frame_is_a_video(make_video: Callable[..., bytes], fmt: str, codec: str) -> None:
    data = make_video(fmt, codec, count=1)
    info = probe(data)
    assert info.frames == 1 and 0 < info.seconds < 1.1
    assert plan(info, VideoSpec(), SPEC).seconds == (0.0,) and shown(data, [0.0]) == [0]


@pytest.mark.parametrize("movflags", ["frag_keyframe", "frag_keyframe+empty_moov", "dash", "faststart"])
def test_mp4_of_every_layout_counts_all_its_frames(make_video: Callable[..., bytes], movflags: str) -> None:
    data = make_video(movflags=movflags)
    assert probe(data) == VideoInfo(height=32, width=32, seconds=2.0, frames=60)
    assert shown(data, [0, 1, 59 / 30]) == [0, 30, 59]


def test_a_live_webm_without_length_or_index_is_counted(make_video: Callable[..., bytes]) -> None:
    data = make_video("webm", "libvpx", live="1")
    assert probe(data).frames == 60 and probe(data).seconds == pytest.approx(2.0, abs=0.002)
    assert shown(data, [0, 1, 59 / 30]) == [0, 30, 59]


@pytest.mark.parametrize(("stored", "factor"), [(b"mdhd", 100), (b"mdhd", 0.1)])
def test_a_length_that_lies_is_not_believed(make_video: Callable[..., bytes], stored: bytes, factor: float) -> None:
    data = bytearray(make_video())
    at = data.index(stored) + 4 + 4 + 8 + 4  # behind name, version and flags, two dates and the time scale
    length = int.from_bytes(data[at : at + 4], "big")
    data[at : at + 4] = int(length * factor).to_bytes(4, "big")
    assert probe(bytes(data)).seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("fmt", ["mp4", "mkv"])
@pytest.mark.parametrize("rotation", [90, -90, 180, 0])
def test_a_turned_video_is_measured_and_shown_upright(
    make_video: Callable[..., bytes], fmt: str, rotation: int
) -> None:
    data = make_video(fmt, size=(32, 64), count=20, rotation=rotation)
    info = probe(data)
    assert (info.height, info.width) == ((64, 32) if rotation % 180 else (32, 64))
    plain = FramePlan(seconds=(19 / 30,), height=info.height, width=info.width, patch_size=4)
    pixels = np.asarray(next(iter(frames(data, plain)))).mean(axis=2)
    half = {90: pixels[:, :16], -90: pixels[:, 16:], 180: pixels[16:], 0: pixels[:16]}[rotation]
    assert half.shape in ((64, 16), (16, 64)) and half.mean() < 10 < 30 < pixels.mean(), "the dark half is turned along"


def test_only_a_film_that_may_be_turned_is_decoded_to_be_measured(
    make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, turned = make_video(), make_video(rotation=90)

    def fail(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(video, "_first_frame", fail)
    assert probe(plain).frames == 60
    with pytest.raises(AssertionError, match="decoded"):
        probe(turned)


@pytest.mark.parametrize("fmt", ["mp4", "mkv"])
def test_at_a_variable_rate_a_time_gives_what_is_on_the_screen_then(make_video: Callable[..., bytes], fmt: str) -> None:
    times = [0, 40, 80, 1000, 1040, 4000, 4500, 4600]
    data = make_video(fmt, count=len(times), times=times)
    info = probe(data)
    assert info.frames == len(times) and 4.5 < info.seconds < 6
    assert shown(data, [0, 0.05, 0.5, 0.999, 1.02, 3.5, 4.1, 4.59, 4.61]) == [0, 1, 2, 3, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("fmt", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx")]
)
def test_seeking_shows_the_same_frames_as_decoding_everything(
    make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, fmt: str, codec: str
) -> None:
    data = make_video(fmt, codec, count=900)
    seconds = [i / 30 for i in range(0, 900, 117)]
    seeks: list[float] = []
    seek = frames_module._Reader._seek
    monkeypatch.setattr(frames_module._Reader, "_seek", lambda self, at: (seeks.append(at), seek(self, at)))
    found = [image.tobytes() for image in frames(data, planned(seconds))]
    assert len(seeks) == len(seconds), "once at the start and once per planned frame behind it"
    monkeypatch.setattr(frames_module._Reader, "_key_frame_between", lambda *_: False)
    assert found == [image.tobytes() for image in frames(data, planned(seconds))]


def test_dense_frames_are_decoded_without_seeking_back(
    make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_video(count=200, gop=100)
    monkeypatch.setattr(frames_module, "MAX_DECODED_PIXELS", 200 * 32 * 32)
    assert shown(data, [i / 30 for i in range(0, 60, 3)]) == list(range(0, 60, 3))


@pytest.mark.parametrize("share", [0.9, 0.7])
def test_a_truncated_film_repeats_its_last_frame(make_video: Callable[..., bytes], share: float) -> None:
    data = make_video(count=600, movflags="faststart")
    seconds = [i / 2 for i in range(40)]
    head = data[: int(len(data) * share)]
    pictures = [image.tobytes() for image in frames(head, planned(seconds))]
    whole = [image.tobytes() for image in frames(data, planned(seconds))]
    assert len(pictures) == len(seconds)
    same = [a == b for a, b in zip(pictures, whole, strict=True)]
    assert same[:20] == [True] * 20 and not same[-1] and pictures[-1] == pictures[-2]


def test_a_film_of_which_less_than_half_is_there_is_refused(make_video: Callable[..., bytes]) -> None:
    data = make_video(count=600, movflags="faststart")
    assert probe(data[: int(len(data) * 0.5)]).frames == 600, "its header is whole"
    assert reason(frames, data[: int(len(data) * 0.5)], planned([i / 2 for i in range(40)])) == "video_truncated"


def test_a_truncated_webm_is_as_long_as_what_is_left(make_video: Callable[..., bytes]) -> None:
    data = make_video("webm", "libvpx")
    info = probe(data[: len(data) * 2 // 3])
    assert 10 < info.frames < 60 and info.seconds == pytest.approx(info.frames / 30, abs=0.05)
    last = (info.frames - 2) / 30
    assert shown(data[: len(data) * 2 // 3], [0, last]) == [0, info.frames - 2]


def test_a_film_that_is_shorter_than_planned_repeats_its_last_frame(make_video: Callable[..., bytes]) -> None:
    assert shown(make_video(count=30), [0, 0.5, 29 / 30, 1.5, 1.8]) == [0, 15, 29, 29, 29]


def test_equal_times_give_the_same_picture(make_video: Callable[..., bytes]) -> None:
    first, second = frames(make_video(), planned([0.5, 0.5]))
    assert first is second


def test_what_is_damaged_in_the_middle_is_stepped_over(make_video: Callable[..., bytes]) -> None:
    data = bytearray(make_video("mkv", count=600))
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    found = shown(bytes(data), [0, 1, 2, 19.9])
    assert found[:3] == [0, 30, 60] and len(found) == 4


def test_garbage_in_place_of_pictures_is_undecodable(make_video: Callable[..., bytes]) -> None:
    data = bytearray(make_video(movflags="faststart"))
    at = data.index(b"mdat") + 4
    data[at:] = bytes(len(data) - at)
    assert reason(frames, bytes(data), planned([0, 1])) == "video_undecodable"


@pytest.mark.parametrize("read", [probe, lambda data: frames(data, planned([0]))])
def test_what_holds_no_video_is_refused(read: Callable[[bytes], Any], make_audio: Callable[..., bytes]) -> None:
    assert reason(read, make_audio()) == "video_no_frames"
    assert reason(read, make_audio(cover=True)) == "video_no_frames", "the cover of a song"
    for data in (b"", b"no video", b"GIF89a" + bytes(20), b"\x1a\x45\xdf\xa3", b"RIFF....AVI LIST", b"....ftypisom"):
        assert reason(read, data) == "video_unreadable", data


@pytest.mark.parametrize("fmt", ["mp4", "mkv"])
def test_a_video_stream_without_a_frame_is_refused(make_audio: Callable[..., bytes], fmt: str) -> None:
    data = make_audio(fmt, empty_video=True)
    assert reason(probe, data) == "video_no_frames"
    assert reason(frames, data, planned([0])) in ("video_no_frames", "video_undecodable")


@pytest.mark.parametrize(("fmt", "codec"), FORMATS[1:5])
def test_damage_of_any_kind_is_a_bad_sample_or_as_many_frames_as_planned(
    make_video: Callable[..., bytes], fmt: str, codec: str
) -> None:
    data = make_video(fmt, codec, count=20)
    rng = random.Random(f"{fmt} {codec}")
    decoded = 0
    for _ in range(25):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 3, 20, 100])):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        at = rng.randrange(len(data) - 4)
        damaged[at : at + 4] = rng.choice([damaged[at : at + 4], bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff"])
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(data)) :]
        try:
            made = plan(probe(bytes(damaged)), VideoSpec(), SPEC)
            assert len(list(frames(bytes(damaged), made))) == len(made.seconds)
            decoded += 1
        except BadSample:
            pass
    assert 0 < decoded < 25


def test_an_unknown_codec_is_refused(make_video: Callable[..., bytes]) -> None:
    assert reason(probe, make_video().replace(b"avc1", b"zzzz")) == "video_codec"


@pytest.mark.parametrize("disguise", [b"", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"])
@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{target}'\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{target}</BaseURL></MPD>',
    ],
)
def test_a_playlist_in_disguise_opens_no_other_file(
    make_video: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, playlist: str, disguise: bytes
) -> None:
    target = tmp_path / "secret.mp4"
    target.write_bytes(make_video())
    data = disguise + playlist.format(target=target).encode()
    opened: list[Any] = []
    monkeypatch.setattr(container, "_no_other_file", lambda *arguments: opened.append(arguments))
    monkeypatch.setattr(builtins, "open", lambda *arguments, **_: opened.append(arguments))
    assert reason(probe, data) == "video_unreadable"
    assert reason(frames, data, planned([0])) == "video_unreadable"
    assert not opened


def test_a_reference_to_another_file_is_refused() -> None:
    with pytest.raises(OSError, match="may not refer to 'file:///etc/passwd'"):
        container._no_other_file("file:///etc/passwd", 1, {})


@pytest.mark.parametrize(
    ("module", "limit", "value"),
    [(container, "MAX_BYTES", 100), (video, "MAX_PIXELS", 1000), (video, "MAX_SIDE", 31), (video, "MAX_SECONDS", 1),
     (video, "MAX_FRAMES", 59)],
)  # fmt: skip
@pytest.mark.parametrize("fmt", ["mp4", "mkv"])
def test_every_limit_holds_before_pixels_are_decoded(
    make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, module: Any, limit: str, value: int, fmt: str
) -> None:
    data = make_video(fmt)
    assert probe(data).frames == 60
    monkeypatch.setattr(module, limit, value)
    assert reason(probe, data) == "video_too_large"


def test_a_film_that_would_decode_for_ever_is_given_up(
    make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_video()
    monkeypatch.setattr(frames_module, "MAX_DECODED_PIXELS", 20 * 32 * 32)
    assert shown(data, [0, 0.1]) == [0, 3]
    assert reason(frames, data, planned([0, 59 / 30])) == "video_too_large"


def test_a_picture_larger_than_its_header_says_is_not_decoded(
    make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_video()
    monkeypatch.setattr(container, "MAX_PIXELS", 100)
    assert reason(frames, data, planned([0])) == "video_undecodable"


def test_without_pyav_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"videos need PyAV: pip install 'sail-train\[video\]'"):
        probe(b"....ftyp")
