"""Video bytes from strangers -> an open container that can reach nothing but those bytes.

The format is told from the file's first bytes and named to FFmpeg, so that no playlist or other text that points at
files is ever tried; what a container may refer to outside itself is refused; decoders are those of a list. FFmpeg comes
through PyAV, which is the extra `video`: the module imports without it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from sail_train.processor.images import MAX_PIXELS
from sail_train.types import BadSample

MAX_BYTES = 2**30
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg", "h263", "msmpeg4v3")
"""Canonical names of the codecs that are decoded."""

_DECODERS = (*CODECS, "libdav1d", "libvpx", "libvpx-vp9", "msmpeg4")
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
    "protocol_whitelist": "",
    "codec_whitelist": ",".join(_DECODERS),
    "max_pixels": str(MAX_PIXELS),
    "skip_frame": "all",  # FFmpeg decodes a few frames to guess at a stream otherwise; ours are decoded apart
    "advanced_editlist": "0",  # edit lists may repeat a film without end; its start is still read from them
}
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_IDENTITY = b"".join(value.to_bytes(4, "big") for value in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
_MATRIX_AT = {b"mvhd": (36, 48), b"tkhd": (40, 52)}
"""Where versions 0 and 1 of the two boxes hold a 3x3 display matrix, from behind the box's name."""
_EBML, _CLUSTER, _POSE_ROLL = b"\x1a\x45\xdf\xa3", b"\x1f\x43\xb6\x75", b"\x76\x75"


@contextmanager
def open_video(data: bytes) -> Iterator[tuple[Any, Any]]:
    """(av container, its first video stream that is no cover picture) of mp4, mov, webm, mkv or avi bytes.

    BadSample: "video_too_large" (bytes), "video_unreadable" (another format, or damaged), "video_codec" (none of
    `CODECS`), "video_no_frames" (no video stream). ValueError without PyAV.
    """
    av = pyav()
    if len(data) > MAX_BYTES:
        raise BadSample("video_too_large", f"{len(data)} bytes; at most {MAX_BYTES}")
    name = _format(data)
    try:
        container = av.open(
            io.BytesIO(data), format=name, options=dict(_OPTIONS), metadata_errors="replace", io_open=_no_other_file
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadSample("video_unreadable", f"as {name}: {error}") from error
    with container:
        yield container, _video_stream(container, av.stream.Disposition.attached_pic)


def pyav() -> Any:
    """The module `av`; ValueError where the extra is not installed."""
    try:
        import av
    except ImportError as error:
        raise ValueError(f"videos need PyAV: pip install 'sail-train[video]' ({error})") from error
    return av


def may_be_turned(data: bytes) -> bool:
    """Whether the header holds a display matrix other than "as it is": FFmpeg shows it with decoded frames only."""
    if data.startswith(_EBML):
        return _POSE_ROLL in data[: max(0, data.find(_CLUSTER))]
    return any(data[at : at + len(_IDENTITY)] != _IDENTITY for at in _matrices(data))


def _format(data: bytes) -> str:
    if data.startswith(_EBML):
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data[4:8] in _MOV_BOXES:
        return "mov"
    raise BadSample("video_unreadable", "neither of mp4, mov, webm, mkv, avi")


def _video_stream(container: Any, cover: Any) -> Any:
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise BadSample("video_no_frames", "no video stream")
    context = streams[0].codec_context
    if context is None or context.codec.canonical_name not in CODECS:
        raise BadSample("video_codec", f"{context.name if context else 'it'} is none of {', '.join(CODECS)}")
    context.thread_count = 1  # the streams that read samples run beside each other already
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return streams[0]


def _no_other_file(url: str, flags: int, options: Any) -> NoReturn:
    raise OSError(f"a video may not refer to {url!r}")


def _matrices(data: bytes) -> Iterator[int]:
    """Offsets of the display matrices of a mov; finds in pixels by chance only cost a look at the first frame."""
    if data[4:8] not in _MOV_BOXES:
        return
    for box, offsets in _MATRIX_AT.items():
        at = data.find(box)
        while at >= 0:
            version = data[at + 4 : at + 5]
            yield at + 4 + offsets[version == b"\x01"]
            at = data.find(box, at + 4)
