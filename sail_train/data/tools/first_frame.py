"""Pictures of formats that training does not read -> the first frame as PNG, where that was asked for (`--convert`)."""

from __future__ import annotations

import io

from PIL import Image

from sail_train.processor.images import MAX_PIXELS, MAX_SIDE, TRANSPOSE, orientation_of, to_rgb
from sail_train.types import BadSample

_BEGINNINGS = {b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_ANIMATED = ("WEBP", "PNG")
"""Formats that training reads unless there are several frames."""


def other_format(content: bytes) -> str:
    """The format, by its first bytes, that training does not read and `as_png` does; empty for any other."""
    return next((kind for beginning, kind in _BEGINNINGS.items() if content.startswith(beginning)), "")


def as_png(content: bytes) -> tuple[bytes, str]:
    """(the upright first frame as PNG, transparency on white; the format that it was).

    The size is capped before a pixel is decoded, as training's is, and no other frame is looked at.

    Raises:
        BadSample: "image_unreadable", "image_too_large", "image_undecodable".
    """
    formats = (*dict.fromkeys(_BEGINNINGS.values()), *_ANIMATED)
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
        kind, (width, height) = str(image.format), image.size
    except Image.DecompressionBombError as error:
        raise BadSample("image_too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadSample("image_unreadable", f"none of {', '.join(formats)}") from error
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BadSample("image_too_large", f"{width}x{height}; at most {MAX_PIXELS} pixels and {MAX_SIDE} a side")
    try:
        return _upright_png(image), kind
    except Exception as error:  # decoders take damaged values for what they should be: TypeError, struct.error, ...
        raise BadSample("image_undecodable", f"{kind}: {type(error).__name__}: {error}") from error


def _upright_png(image: Image.Image) -> bytes:
    # as training reads it; of a TIFF there is none here, since Pillow turns that one itself as it decodes it
    orientation = orientation_of(image)
    image.load()
    if image.mode == "F":
        raise ValueError("what is white in pixels of floating point is not known")
    upright = to_rgb(image)
    if orientation in TRANSPOSE:
        upright = upright.transpose(TRANSPOSE[orientation])
    upright.info.pop("exif", None)  # an orientation that was kept would be applied a second time
    made = io.BytesIO()
    upright.save(made, "PNG")
    return made.getvalue()
