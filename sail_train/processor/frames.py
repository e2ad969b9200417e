"""Video bytes and a plan -> the planned frames, upright RGB, resized, one after the other.

However the stream differs from its header, as many come as were planned: of each time the frame that is on the screen
then, of a time behind the stream's end its last. Where the container's index knows a key frame between what was decoded
last and what is wanted next, decoding starts again there: 640 frames of three hours cost 640 stretches between key
frames and not three hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from sail_train.processor.container import open_video, pyav
from sail_train.processor.video import FramePlan
from sail_train.types import BadSample

MIN_SHARE = 0.5
"""Of the planned frames that the stream must reach; the rest may repeat its last."""
MAX_DECODED_PIXELS = 10**12
"""Of one video: four hours of 1080p in a single stretch without a key frame."""

_SLACK = 2e-3
"""Seconds by which a frame may come late: webm and mkv round times to milliseconds."""
_REORDER = 17
"""Frames before a key frame's time that may need it: an index has decoding times, which lag by up to 16 frames."""
_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
"""By quarter turns, counterclockwise as in FFmpeg."""


def frames(data: bytes, plan: FramePlan) -> Iterator[Image.Image]:
    """Exactly `len(plan.seconds)` RGB images of (plan.width, plan.height), bicubic; equal times give the same object.

    BadSample: what `open_video` refuses, "video_undecodable" (no frame decodes), "video_truncated" (the stream ends
    before half of the planned frames), "video_too_large" (more than `MAX_DECODED_PIXELS` to get through).
    """
    with open_video(data) as (container, stream):
        reader = _Reader(container, stream)
        shown, image = None, None
        for number, seconds in enumerate(plan.seconds):
            frame = reader.at(seconds)
            if seconds > reader.end and number < MIN_SHARE * len(plan.seconds):
                raise BadSample(
                    "video_truncated",
                    f"ends at {reader.end:.1f} s, after {number} of {len(plan.seconds)} planned frames",
                )
            if image is None or frame is not shown:
                shown, image = frame, _picture(frame, plan)
            yield image


def _picture(frame: Any, plan: FramePlan) -> Image.Image:
    try:
        image: Image.Image = frame.to_image()
    except (pyav().FFmpegError, ValueError) as error:
        raise BadSample("video_undecodable", f"a frame of format {frame.format.name}: {error}") from error
    turns = round(frame.rotation / 90) % 4
    if turns:
        image = image.transpose(_TURNS[turns])
    if image.size == (plan.width, plan.height):
        return image
    return image.resize((plan.width, plan.height), Image.Resampling.BICUBIC)


class _Reader:
    """A stream that is asked for the frames at rising times."""

    def __init__(self, container: Any, stream: Any, *, seeks: bool = True) -> None:
        self._container, self._stream, self._seeks = container, stream, seeks
        self._start = float((stream.start_time or 0) * stream.time_base)
        self._gap = 1 / float(stream.average_rate or 25)
        self._counted = container.format.name == "avi"  # its packets have no display times
        self._pixels = 0
        self._error, self._errors = "the stream holds none", pyav().FFmpegError
        if seeks:
            self._seek(0.0)  # mkv reads its index at the first seek
        else:
            self._decoded = self._decode()
        self._shown: Any = None
        self._time = self._end = -self._gap
        self._next: tuple[float, Any] | None = next(self._decoded, None)

    @property
    def end(self) -> float:
        """Seconds up to which the stream is known to last; infinite while there is more to decode."""
        return float("inf") if self._next is not None else self._end + _SLACK

    def at(self, seconds: float) -> Any:
        """The last frame that is shown at or before `seconds`, or else the first there is."""
        wanted = seconds + _SLACK
        if self._seeks and self._key_frame_between(wanted):
            self._seek(wanted - _REORDER * self._gap)
            self._next = next(self._decoded, None)
        while self._next is not None and (self._shown is None or self._next[0] <= wanted):
            self._time, self._shown = self._next
            self._next = next(self._decoded, None)
        if self._shown is None:
            raise BadSample("video_undecodable", f"no frame decodes: {self._error}")
        return self._shown

    def _key_frame_between(self, wanted: float) -> bool:
        """Whether the index knows a key frame after what is decoded and early enough before `wanted`."""
        entries = self._stream.index_entries
        found = entries.search_timestamp(self._ticks(wanted - _REORDER * self._gap), backward=True, any_frame=False)
        position = self._time if self._next is None else self._next[0]
        return found >= 0 and self._seconds(entries[found].timestamp) > position

    def _seek(self, seconds: float) -> None:
        try:
            self._container.seek(self._ticks(seconds), stream=self._stream)
        except self._errors as error:
            self._error, self._seeks = str(error), False
        self._decoded = self._decode()

    def _decode(self) -> Iterator[tuple[float, Any]]:
        """(seconds, frame) from where the container stands; what does not decode is left out."""
        time, count, first = -float("inf"), 0, None
        for packet in self._packets():
            if first is None and packet is not None:
                first = packet.dts or 0
            for frame in self._frames_of(packet):
                self._pixels += frame.width * frame.height
                if self._pixels > MAX_DECODED_PIXELS:
                    raise BadSample("video_too_large", f"more than {MAX_DECODED_PIXELS} pixels to decode")
                if self._counted:
                    time = self._seconds((first or 0) + count)
                else:
                    time = max(time, time + self._gap if frame.pts is None else self._seconds(frame.pts))
                count += 1
                yield time, frame

    def _packets(self) -> Iterator[Any]:
        """The stream's packets, then None; a file that breaks off ends there."""
        packets = self._container.demux(self._stream)
        try:
            for packet in packets:
                time = packet.dts if packet.pts is None or self._counted else packet.pts
                if not packet.size or time is None:
                    continue
                length = float((packet.duration or 0) * self._stream.time_base) or self._gap
                self._end = max(self._end, self._seconds(time) + length)
                yield packet
        except self._errors as error:
            self._error = str(error)
        yield None

    def _frames_of(self, packet: Any) -> list[Any]:
        try:
            return list(self._stream.decode(packet))
        except self._errors as error:
            self._error = str(error)
            return []

    def _ticks(self, seconds: float) -> int:
        return int((seconds + self._start) / self._stream.time_base)

    def _seconds(self, ticks: int) -> float:
        return float(ticks * self._stream.time_base) - self._start
