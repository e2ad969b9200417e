"""Video bytes -> what its header says (`probe`) -> which frames are looked at and how large (`plan`).

The plan follows Seed1.5-VL's dynamic frame-resolution sampling (arXiv 2505.07062, section 2.2, and the published
demo's figures), or takes SAIL-VL2's evenly spread frames. `processor.frames` decodes what was planned.
Non-square pixels are taken as square, and edit lists that cut a film are not followed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sail_train.processor.container import may_be_turned, open_video, pyav
from sail_train.processor.images import MAX_PIXELS, MAX_SIDE
from sail_train.types import BadSample
from sail_train.visual import Grid, ImageSpec, VideoSpec

MAX_SECONDS = 12 * 3600
MAX_FRAMES = 5_000_000


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video's container says of it; what is decoded later may still differ."""

    height: int
    """Pixels of the upright picture."""
    width: int
    seconds: float
    """Above 0."""
    frames: int
    """At least 1."""

    @property
    def fps(self) -> float:
        """Frames a second on average, so that frame i is shown from i / fps on, before `seconds`."""
        return self.frames / self.seconds


@dataclass(frozen=True, kw_only=True)
class FramePlan:
    """Which frames of a video the model sees: all that is needed to decode them."""

    seconds: tuple[float, ...]
    """When each frame is shown, rising, from the video's start."""
    height: int
    """Pixels to which every frame is resized: whole patches, whole tokens."""
    width: int
    patch_size: int

    @property
    def grids(self) -> tuple[Grid, ...]:
        """(patch rows, patch columns) of each frame."""
        return ((self.height // self.patch_size, self.width // self.patch_size),) * len(self.seconds)

    @classmethod
    def of(cls, seconds: Sequence[float], grids: Sequence[Grid], patch_size: int) -> FramePlan:
        """The plan again, from what a `Visual` keeps of it."""
        rows, cols = grids[0]
        assert len(seconds) == len(grids) and set(grids) == {(rows, cols)}, "a video has one grid, once per frame"
        return cls(seconds=tuple(seconds), height=rows * patch_size, width=cols * patch_size, patch_size=patch_size)


def probe(data: bytes) -> VideoInfo:
    """Size, length and number of frames of an mp4, mov, webm, mkv or avi.

    From the header where it says so: of a film that may be turned one frame is decoded, since FFmpeg tells the
    rotation with it alone; where frames are not counted (webm, mkv, fragmented mp4) packets are, undecoded.
    BadSample: "video_unreadable", "video_codec", "video_no_frames", "video_undecodable", "video_too_large" (bytes,
    pixels, seconds or frames). ValueError where PyAV is not installed.
    """
    with open_video(data) as (container, stream):
        frames, seconds = _length(container, stream)
        if frames < 1:
            raise BadSample("video_no_frames", "a video stream without a picture")
        if seconds > MAX_SECONDS or frames > MAX_FRAMES:
            raise BadSample(
                "video_too_large",
                f"{frames} frames in {seconds:.0f} s; at most {MAX_FRAMES} and {MAX_SECONDS}",
            )
        height, width = _size(data, container, stream)
    return VideoInfo(height=height, width=width, seconds=seconds, frames=frames)


def plan(info: VideoInfo, spec: VideoSpec, image: ImageSpec, *, fps: float | None = None) -> FramePlan:
    """The frames of a video that the model sees.

    dynamic: `fps` (None: the spec's) frames a second, at least `min_frames` as far as the video has them, spread from
    the first to the last; each gets the largest level at which all fit `max_tokens`; where even the lowest does not
    hold them, an even selection of them does. A level caps a frame's pixels, it enlarges none.
    uniform: the middles of `num_frames` equal parts (all frames of a shorter video), one tile each, or one native
    image of at most `frame_pixels`; `fps` does not matter.

    BadSample "image_aspect" as for images. ValueError: fps, or dynamic frames with tiled images.
    """
    rate = spec.fps if fps is None else fps
    if rate <= 0:
        raise ValueError(f"fps={rate} must be above 0")
    if spec.mode == "uniform":
        indices = _middles(info.frames, spec.num_frames)
        height, width = _uniform_size(info, spec, image)
    else:
        if image.mode != "native":
            raise ValueError(f'image.mode="{image.mode}" has no levels; video.mode="dynamic" needs "native" images')
        indices, level = _dynamic(info, spec, rate)
        height, width = _fit(info, image, level * image.unit**2)
    seconds = tuple(index / info.fps for index in indices)
    return FramePlan(seconds=seconds, height=height, width=width, patch_size=image.patch_size)


def timestamp(seconds: float) -> str:
    """Seed1.5-VL's text before a frame: "[1.5 second]"."""
    return f"[{round(float(seconds), 1)} second]"


def _dynamic(info: VideoInfo, spec: VideoSpec, fps: float) -> tuple[list[int], int]:
    """(indices of frames, tokens a frame)."""
    wanted = max(math.ceil(info.frames / info.fps * fps), spec.min_frames)
    indices = _spread(info.frames, min(wanted, info.frames))
    for level in spec.levels:
        if len(indices) * level <= spec.max_tokens:
            return indices, level
    lowest = spec.levels[-1]
    return [indices[i] for i in _spread(len(indices), spec.max_tokens // lowest)], lowest


def _spread(count: int, chosen: int) -> list[int]:
    """`chosen` of range(count), evenly, the first and the last among them."""
    return [int(i) for i in np.linspace(0, count - 1, chosen).round()]


def _middles(count: int, chosen: int) -> list[int]:
    chosen = min(chosen, count)
    return [int((i + 0.5) * count / chosen) for i in range(chosen)]


def _uniform_size(info: VideoInfo, spec: VideoSpec, image: ImageSpec) -> Grid:
    if image.mode == "tile":
        return image.tile_size, image.tile_size
    return _fit(info, image, spec.frame_pixels)


def _fit(info: VideoInfo, image: ImageSpec, max_pixels: int) -> tuple[int, int]:
    """(height, width) of a frame under a cap of its own, which goes before the images' least size."""
    cap = max(max_pixels, image.unit**2)
    height, width = dataclasses.replace(image, min_pixels=min(image.min_pixels, cap), max_pixels=cap).resize(
        info.height, info.width
    )
    # A strip that is enlarged to the least area may come out longer than the cap allows.
    tokens, unit = cap // image.unit**2, image.unit
    rows = min(height // unit, tokens)
    return rows * unit, min(width // unit, tokens // rows) * unit


def _length(container: Any, stream: Any) -> tuple[int, float]:
    """(frames, seconds): the header's where its stream counts frames, else the packets'."""
    entries = stream.index_entries
    # A fragmented mp4 counts its first part alone, and a damaged header anything.
    if stream.duration and stream.duration > 0 and 0 < stream.frames == len(entries):
        span = entries[-1].timestamp - entries[0].timestamp
        ticks = max(stream.duration, span + span // max(1, stream.frames - 1))
        return stream.frames, float(ticks * stream.time_base)
    frames, seconds = _count_packets(container, stream)
    if seconds <= 0:
        seconds = frames / float(stream.average_rate or 1)
    return frames, seconds


def _count_packets(container: Any, stream: Any) -> tuple[int, float]:
    """(frames, seconds) of what can be read; a file that breaks off has what came before."""
    frames, first, last, end = 0, math.inf, -math.inf, -math.inf
    try:
        for packet in container.demux(stream):
            time = packet.dts if packet.pts is None else packet.pts
            if not packet.size or time is None:
                continue
            frames += 1
            first, last, end = min(first, time), max(last, time), max(end, time + (packet.duration or 0))
            if frames > MAX_FRAMES:
                break
    except pyav().FFmpegError:
        pass  # a truncated file
    if frames == 0:
        return 0, 0.0
    if end == last and frames > 1:  # packets without a duration
        end += (last - first) / (frames - 1)
    return frames, float((end - first) * stream.time_base)


def _size(data: bytes, container: Any, stream: Any) -> tuple[int, int]:
    """(height, width) of the upright picture."""
    context = stream.codec_context
    height, width = context.height, context.width
    if may_be_turned(data) or height < 1 or width < 1:
        frame = _first_frame(container, stream)
        height, width = frame.height, frame.width
        if round(frame.rotation / 90) % 2:
            height, width = width, height
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise BadSample("video_too_large", f"{width}x{height}; at most {MAX_PIXELS} pixels and {MAX_SIDE} a side")
    return height, width


def _first_frame(container: Any, stream: Any) -> Any:
    try:
        container.seek(0, stream=stream)
        return next(iter(container.decode(stream)))
    except (pyav().FFmpegError, StopIteration) as error:
        raise BadSample("video_undecodable", f"no frame: {error}") from error
