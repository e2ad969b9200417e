"""References to images and videos -> their bytes, as they are, known to be readable.

An image is decoded to its last pixel; of a video the container is looked into where PyAV is installed, else its first
bytes. Nothing is fetched, and neither a path nor a link leads out of the folders that the user named.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sail_train.data.tar import MAX_MEMBER_BYTES, MAX_VIDEO_BYTES
from sail_train.data.tools.first_frame import as_png, other_format
from sail_train.data.tools.imported import MediaRef
from sail_train.data.writer import image_extension, video_extension
from sail_train.processor.images import open_image
from sail_train.processor.video import probe
from sail_train.types import BadSample

FORMAT, ANIMATED = "image_format", "image_animated"
"""Reasons for an image that training does not read and `as_png` does."""
OUTSIDE = "outside_folder"
"""Reason for a path or a link that leaves the folders."""
_DATA_URL = re.compile(r"data:(?:image|video)/[a-z0-9+.-]+;base64,(.*)", re.DOTALL)
_BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR")
"""How JPEG, PNG and WebP begin in base64."""
_SHORTEST = 60
"""Characters of base64 from which on a text is taken for it: the smallest picture has more, few paths do."""


def of_a_file(reason: str) -> bool:
    """Whether a record refused for this reason may be good once its files are others."""
    return reason == OUTSIDE or (reason.startswith(("image_", "video_")) and not reason.endswith("_count"))


def load_image(ref: MediaRef, folders: Sequence[Path], *, convert: bool = False) -> tuple[bytes, str]:
    """(bytes of an image, known to decode; "", or with `convert` the format that was made PNG).

    Raises:
        BadSample: a path or a link that leaves the folders, a file that is missing or too large, an address on the
            network, or something that is no image.
    """
    content, kind = _content(ref, folders, kind="image", limit=MAX_MEMBER_BYTES), ""
    try:
        open_image(content)
    except BadSample as error:
        other = other_format(content)
        if not other and error.reason != ANIMATED:
            raise
        if not convert:
            reason, detail = (FORMAT, f"is {other}") if other else (ANIMATED, error.detail)
            raise BadSample(reason, f"{detail}; --convert makes its first frame a PNG") from None
        content, kind = as_png(content)
        if len(content) > MAX_MEMBER_BYTES:
            raise BadSample("image_too_large", f"{len(content)} bytes as PNG, of {MAX_MEMBER_BYTES}") from None
    try:
        image_extension(content)
    except ValueError as error:
        raise BadSample("image_unreadable", str(error)) from None
    return content, kind


def load_video(ref: MediaRef, folders: Sequence[Path]) -> bytes:
    """The bytes of a video that can be opened; BadSample as `load_image`, or what its header shows."""
    content = _content(ref, folders, kind="video", limit=MAX_VIDEO_BYTES)
    try:
        video_extension(content)
    except ValueError as error:
        raise BadSample("video_unreadable", str(error)) from None
    if importlib.util.find_spec("av") is not None:
        probe(content)
    return content


def _content(ref: MediaRef, folders: Sequence[Path], *, kind: str, limit: int) -> bytes:
    if isinstance(ref, Mapping):
        ref = ref.get("bytes") or ref.get("path") or ""
    content = ref if isinstance(ref, bytes) else _from_text(ref, kind) if isinstance(ref, str) else b""
    if content is None:
        content = _from_file(str(ref), folders, kind, limit)
    if len(content) > limit:
        raise BadSample(f"{kind}_too_large", f"{len(content)} bytes, the limit is {limit}")
    return content


def _from_text(ref: str, kind: str) -> bytes | None:
    """The bytes of a data URL or of base64; None for a path."""
    bare = ref.startswith(_BASE64) and len(ref) >= _SHORTEST
    if ref.startswith("data:") or bare:
        match = _DATA_URL.fullmatch(ref)
        try:
            return base64.b64decode(ref if bare else match[1] if match else "", validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadSample(f"{kind}_unreadable", f"base64: {error}") from None
    if "://" in ref and not ref.startswith("file://"):
        raise BadSample(f"remote_{kind}", f"{ref!r:.120} is not fetched; download it and give its folder")
    return None


def _from_file(ref: str, folders: Sequence[Path], kind: str, limit: int) -> bytes:
    refusals: list[BadSample] = []
    for folder in folders:
        try:
            path = _found(ref.removeprefix("file://"), folder, folders, kind)
            size = path.stat().st_size
        except BadSample as error:
            refusals.append(error)
        except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, links in a circle
            refusals.append(BadSample(f"{kind}_missing", f"{ref!r:.120}: {error}"))
        else:
            if size > limit:
                raise BadSample(f"{kind}_too_large", f"{path} is larger than {limit} bytes")
            return path.read_bytes()
    # what is there and may not be read says more than where else it is missing
    raise next((error for error in refusals if error.reason == OUTSIDE), refusals[0])


def _found(ref: str, folder: Path, folders: Sequence[Path], kind: str) -> Path:
    """The file below one folder, any links followed: where they lead has to be inside a folder that was named."""
    named = folder / ref
    path = named.resolve()
    if not any(path.is_relative_to(each) for each in folders):
        if Path(os.path.normpath(named)).is_relative_to(folder):
            raise BadSample(
                OUTSIDE,
                f"{ref!r:.120} is a link to {path}, outside of {folder}; if that may be read, name its folder too: "
                + " ".join(f"--images {each}" for each in (*folders, path.parent)),
            )
        named_now = " ".join(f"--images {each}" for each in folders)
        raise BadSample(OUTSIDE, f"{ref!r:.120} is not inside {folder}; name its folder too, after {named_now}")
    if not path.is_file():
        linked = f"{named} is a link to {path}, which" if named.is_symlink() else f"{path}"
        raise BadSample(f"{kind}_missing", f"{linked} does not exist")
    return path
