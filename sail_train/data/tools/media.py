"""References to images and videos -> their bytes, as they are, known to be readable.

An image is decoded to its last pixel; of a video the container is looked into where PyAV is installed, else its first
bytes. Nothing is fetched, and no path leads out of the folder that the user named.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from sail_train.data.tar import MAX_MEMBER_BYTES, MAX_VIDEO_BYTES
from sail_train.data.tools.imported import MediaRef
from sail_train.data.writer import image_extension, video_extension
from sail_train.processor.images import open_image
from sail_train.processor.video import probe
from sail_train.types import BadSample

_DATA_URL = re.compile(r"data:(?:image|video)/[a-z0-9+.-]+;base64,(.*)", re.DOTALL)
_BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR")
"""How JPEG, PNG and WebP begin in base64."""
_SHORTEST = 60
"""Characters of base64 from which on a text is taken for it: the smallest picture has more, few paths do."""


def load_image(ref: MediaRef, root: Path) -> bytes:
    """The bytes of an image, known to decode.

    Raises:
        BadSample: a path that leaves `root`, a file that is missing or too large, an address on the network, or
            something that is no image.
    """
    content = _content(ref, root, kind="image", limit=MAX_MEMBER_BYTES)
    open_image(content)
    try:
        image_extension(content)
    except ValueError as error:
        raise BadSample("image_unreadable", str(error)) from None
    return content


def load_video(ref: MediaRef, root: Path) -> bytes:
    """The bytes of a video that can be opened; BadSample as `load_image`, or what its header shows."""
    content = _content(ref, root, kind="video", limit=MAX_VIDEO_BYTES)
    try:
        video_extension(content)
    except ValueError as error:
        raise BadSample("video_unreadable", str(error)) from None
    if importlib.util.find_spec("av") is not None:
        probe(content)
    return content


def _content(ref: MediaRef, root: Path, *, kind: str, limit: int) -> bytes:
    if isinstance(ref, Mapping):
        ref = ref.get("bytes") or ref.get("path") or ""
    content = ref if isinstance(ref, bytes) else _from_text(ref, kind) if isinstance(ref, str) else b""
    if content is None:
        content = _from_file(str(ref), root, kind, limit)
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


def _from_file(ref: str, root: Path, kind: str, limit: int) -> bytes:
    try:
        # resolved first: neither ".." nor a link inside the folder may lead out of it
        path = (root / ref.removeprefix("file://")).resolve()
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError) as error:  # a name that no file can have
        raise BadSample(f"{kind}_missing", f"{ref!r:.120}: {error}") from None
    if not path.is_relative_to(root):
        raise BadSample("outside_folder", f"{ref!r:.120} is not inside {root}; name its folder with --images")
    if size is None:
        raise BadSample(f"{kind}_missing", f"{path} does not exist")
    if size > limit:
        raise BadSample(f"{kind}_too_large", f"{path} is larger than {limit} bytes")
    return path.read_bytes()
