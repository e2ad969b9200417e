from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from sail_train.processor.images import image_size, open_image
from sail_train.types import BadSample


def save(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_header_size_is_the_decoded_size_in_every_orientation(
    encoded_image: Callable[..., bytes], fmt: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded_image(30, 20, fmt=fmt, exif=exif)
    image = open_image(data)
    assert image_size(data) == (image.height, image.width)
    assert image_size(data) == ((30, 20) if orientation >= 5 else (20, 30))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_pixels_are_those_that_pillow_turns(orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(pixels), "PNG", exif=exif)
    from PIL import ImageOps

    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(expected))


def test_a_damaged_exif_block_means_upright(encoded_image: Callable[..., bytes]) -> None:
    data = encoded_image(30, 20, fmt="JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff broken")
    assert image_size(data) == (20, 30)
    assert open_image(data).size == (30, 20)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(20), b"RIFF....WEBP"])
def test_what_is_no_image_of_the_three_formats_is_a_bad_sample(data: bytes) -> None:
    for read in (image_size, open_image):
        with pytest.raises(BadSample) as caught:
            read(data)
        assert caught.value.reason == "image_unreadable"


def test_other_formats_are_refused(encoded_image: Callable[..., bytes]) -> None:
    for fmt in ("GIF", "BMP", "TIFF"):
        with pytest.raises(BadSample, match="image_unreadable: none of JPEG, PNG, WEBP"):
            image_size(encoded_image(fmt=fmt))


def test_a_truncated_image_measures_but_does_not_decode(encoded_image: Callable[..., bytes]) -> None:
    data = encoded_image(200, 100, fmt="PNG")[:-60]
    assert image_size(data) == (100, 200)
    with pytest.raises(BadSample) as caught:
        open_image(data)
    assert caught.value.reason == "image_undecodable"


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no pixels: a decompression bomb's header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8000, 8000), (17_000, 10), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    for read in (image_size, open_image):
        with pytest.raises(BadSample) as caught:
            read(png_header(*size))
        assert caught.value.reason == "image_too_large"


def test_an_image_of_no_pixels_is_refused() -> None:
    with pytest.raises(BadSample) as caught:
        image_size(png_header(0, 5))
    assert caught.value.reason == "image_unreadable"


@pytest.mark.parametrize("fmt", ["WEBP", "PNG"])
def test_an_animation_is_refused(fmt: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = save(frames[0], fmt, save_all=True, append_images=frames[1:])
    with pytest.raises(BadSample) as caught:
        image_size(data)
    assert caught.value.reason == "image_animated"


def test_a_phones_jpeg_with_a_second_picture_gives_the_first() -> None:
    frames = [Image.new("RGB", (16, 8), color) for color in ("red", "blue")]
    data = save(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert image_size(data) == (8, 16)
    assert open_image(data).getpixel((3, 3))[0] > 200


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    else:
        image = Image.new("RGB", (4, 4), "white").convert(mode)
    data = save(image, "JPEG" if mode == "CMYK" else "PNG")
    rgb = open_image(data)
    assert rgb.mode == "RGB"
    assert rgb.getpixel((0, 0)) == ((156, 156, 156) if mode == "I;16" else (255, 255, 255))


def test_transparency_goes_on_white() -> None:
    data = save(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")
    assert open_image(data).getpixel((0, 0)) == (255, 255, 255)
