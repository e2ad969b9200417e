"""Videos and limits on the way from a shard to a batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sail_train.data import conversation
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.prompts import PromptStream
from sail_train.data.shard_file import ShardFile
from sail_train.data.stream import Stream
from sail_train.data.tools import check, inspect
from sail_train.data.writer import files_of, video_extension, write_shards
from sail_train.processor.processor import SailVLProcessor
from sail_train.types import BadSample, Conversation, Message, Part, RawSample

MakeVideo = Callable[..., bytes]


def film(number: int, video: bytes, **more: Any) -> Conversation:
    """A question about a film and an image."""
    content = (Part(type="video"), Part(type="text", text=f"what is in image {number}"))
    said = Message(role="assistant", content=(Part(type="text", text="red cat"),))
    return Conversation(
        key=f"{number:06d}",
        source="films",
        messages=(Message(role="user", content=content), said),
        videos=(video,),
        **more,
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, encoded_video: MakeVideo) -> str:
    """Four films of ten seconds, the third cut off in its pixels."""
    folder, good = tmp_path_factory.mktemp("films"), encoded_video(count=100)
    broken = encoded_video(count=100, kind="avi")
    spoilt = broken[:200] + bytes(len(broken) - 200)
    samples = [film(n, spoilt if n == 2 else good, answer="red", verifier="exact") for n in range(4)]
    write_shards(samples, folder, "films", 4)
    return str(folder / "*.tar")


def config(shards: str, **limits: Any) -> DataConfig:
    source = SourceConfig(shards=shards, max_bad=1000, **limits)
    return DataConfig(
        sources={"films": source}, seq_length=4000, max_patches=16_000, num_streams=1, batch_rows=1, pack_buffer=2,
        shuffle_buffer=1, prefetch=0,
    )  # fmt: skip


def raw(**members: bytes) -> RawSample:
    names = {name.replace("_", "."): content for name, content in members.items()}
    return RawSample(key="k", source="s", shard="x.tar", offset=0, members=names)


def record(*kinds: str) -> bytes:
    content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": "what"}]
    return json.dumps({"messages": [{"role": "user", "content": content}]}).encode()


def test_videos_are_counted_by_themselves_and_in_order() -> None:
    found = conversation.parse(
        raw(json=record("video", "image", "video"), jpg=b"i", **{"1_webm": b"second", "0_mp4": b"first"})
    )
    assert found.videos == (b"first", b"second") and found.images == (b"i",)
    assert [part.type for part in found.messages[0].content] == ["video", "image", "video", "text"]
    assert conversation.parse(raw(json=record("video"), mov=b"only")).videos == (b"only",)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"json": record("video")}, "video_count"),
        ({"json": record(), "mp4": b"v"}, "video_count"),
        ({"json": record("video"), "jpg": b"i"}, "image_count"),
        ({"json": record("video"), "1_mp4": b"v"}, "bad_video_name"),
        ({"json": record("video"), "one_mp4": b"v"}, "bad_video_name"),
        ({"json": record("video", "video"), "0_mp4": b"v", "mkv": b"v"}, "bad_video_name"),
    ],
)
def test_videos_without_a_place_are_bad_samples(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        conversation.parse(raw(**members))
    assert caught.value.reason == reason


@pytest.mark.parametrize(("kind", "extension"), [("mp4", "mp4"), ("mov", "mp4"), ("webm", "mkv"), ("avi", "avi")])
def test_a_film_survives_being_written(tmp_path: Path, encoded_video: MakeVideo, kind: str, extension: str) -> None:
    video = encoded_video(count=3, kind=kind)
    (path,) = write_shards([film(0, video)], tmp_path, "films", 4)
    file = ShardFile(str(path), source="films")
    sample = file.sample(file.index(), 0)
    assert set(sample.members) == {f"0.{extension}", "json"}
    again = conversation.parse(sample)
    assert again.videos == (video,) and again.messages == film(0, video).messages


def test_what_is_no_video_is_not_written() -> None:
    with pytest.raises(ValueError, match="neither MP4, MOV, WebM, MKV nor AVI"):
        video_extension(b"GIF89a")
    with pytest.raises(ValueError, match="neither MP4"):
        files_of(film(0, b""))


def test_films_are_trained_on_frame_by_frame_and_a_broken_one_is_left_out(
    shards: str, processor: SailVLProcessor
) -> None:
    with Stream(config(shards), processor, seed=0) as stream:
        step = next(stream)
    (batch,) = step.batches
    counts = {key: batch.keys.count(key) for key in set(batch.keys)}
    assert "000002" not in counts and {record["reason"] for record in step.quarantined} <= {
        "video_undecodable", "video_truncated", "video_unreadable", "video_no_frames",
    }  # fmt: skip
    frames = 16 * sum(counts.values())
    assert batch.grids.shape == (frames, 2) and len(batch.patches) == int(batch.grids.prod(1).sum())
    tokens = int((batch.input_ids == processor.image_token_id).sum())
    assert tokens == len(batch.patches) // 4
    assert "[0.7 second]" in processor.decode(batch.input_ids)


def test_a_sources_limits_reach_its_samples_and_the_fingerprint(shards: str, processor: SailVLProcessor) -> None:
    with Stream(config(shards), processor, seed=0) as plain, Stream(config(shards, fps=5.0), processor, seed=0) as fast:
        (first, *_), (second, *_) = plain.next_row().samples, fast.next_row().samples
        assert (len(first.grids), len(second.grids)) == (16, 50)
        assert plain.settings != fast.settings
        with pytest.raises(ValueError, match="fps=None, fps=5.0|fps=None.*fps=5.0"):
            fast.load_state(plain.positions)
    (conversation, *_) = held_out({"films": SourceConfig(shards=shards, fps=2.0, max_tiles=3)}, 1)
    assert (conversation.fps, conversation.max_tiles) == (2.0, 3)


def test_prompts_hold_films_that_decode(shards: str, processor: SailVLProcessor) -> None:
    stream = PromptStream(config(shards, fps=2.0), processor, seed=0)
    asked = [next(stream)[0] for _ in range(3)]
    assert {one.key for one in asked} == {"000000", "000001", "000003"} and asked[0].fps == 2.0
    assert len(processor.prompt(asked[0], uid="0").grids) == 20
    assert [record["key"] for record in stream.take_quarantined()] == ["000002"]


def test_check_decodes_films_with_and_without_a_processor(shards: str, processor: SailVLProcessor) -> None:
    for given in (None, processor):
        report = check.check_shards([shards], processor=given)
        assert (report.samples, report.videos, report.images) == (3, 3, 0)
        assert sum(report.bad.values()) == 1
    with_lengths = check.check_shards([shards], processor=processor, max_patches=10)
    assert with_lengths.bad["too_many_patches"] == 3


def test_inspect_shows_frames_side_by_side(shards: str, processor: SailVLProcessor) -> None:
    sample = next(iter(inspect.seen_samples([shards], processor)))
    (seen,) = sample.visuals
    assert seen.kind == "video" and seen.num_pictures == 16 and seen.size == (32, 48)
    assert seen.caption.startswith("video 48x32 -> 16 x ")


def test_limits_of_a_source_are_checked() -> None:
    with pytest.raises(ValueError, match="max_tiles=0 must be at least 1"):
        SourceConfig(max_tiles=0)
    with pytest.raises(ValueError, match="fps=-1 must be above 0"):
        SourceConfig(fps=-1)


def test_tiles_are_shown_as_the_encoder_gets_them(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    tiled = SailVLProcessor(processor.tokenizer, image={"mode": "tile", "tile_size": 28, "max_tiles": 4})
    files = [("a.0.png", make.image(1, (28, 84))), ("a.json", make.json(images=1))]
    (sample,) = inspect.seen_samples([str(make.tar(tmp_path / "a.tar", files))], tiled)
    assert sample.visuals[0].caption == "image 84x28 -> 4 x 28x28, 4 tokens"
