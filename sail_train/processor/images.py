"""Compressed image bytes -> size (from the header alone) -> upright RGB pixels.

The bytes come from strangers: three formats are read, size is capped before a pixel is decoded, and whatever
is wrong is a `BadSample`. Orientation is read from the EXIF block ahead of the pixels only, in both functions,
so that the size measured is the size decoded.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from sail_train.types import BadSample

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 40_000_000
MAX_SIDE = 16_384

_ORIENTATION = 0x0112
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of each EXIF orientation upright; 1 is."""
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I")


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the upright image, without decoding it; BadSample if it is not to be decoded."""
    image = _open(data)
    width, height = image.size
    return (width, height) if orientation_of(image) >= 5 else (height, width)


def open_image(data: bytes) -> Image.Image:
    """The upright image in RGB, transparency on white; BadSample if its pixels cannot be read."""
    image = _open(data)
    orientation = orientation_of(image)
    try:
        image.load()
        image = to_rgb(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadSample("image_undecodable", f"{type(error).__name__}: {error}") from error
    return image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency goes on white, and 16-bit grey is scaled, where Pillow would clip it."""
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT:
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadSample("image_too_large", str(error)) from error
    except UnidentifiedImageError as error:  # its text names an object of ours
        raise BadSample("image_unreadable", f"none of {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadSample("image_unreadable", f"none of {', '.join(FORMATS)}: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BadSample("image_too_large", f"{width}x{height}; at most {MAX_PIXELS} pixels and {MAX_SIDE} a side")
    if min(width, height) == 0:
        raise BadSample("image_unreadable", f"{width}x{height} has no pixel")
    # A phone's JPEG may carry a preview or a gain map behind the picture (MPO); only animations are refused.
    if image.format != "MPO" and getattr(image, "n_frames", 1) != 1:
        raise BadSample("image_animated", f"{image.n_frames} frames")  # type: ignore[attr-defined]
    return image


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8. Not `image.getexif()`: on a PNG it decodes all pixels to look behind them."""
    block = image.info.get("exif")
    if not block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(block)
        value = exif.get(_ORIENTATION, 1)
    except Exception:  # Pillow's parser fails in many ways on a damaged block, which viewers ignore
        return 1
    return value if value in TRANSPOSE else 1
