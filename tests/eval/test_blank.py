from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from sail_train.eval.blank import blank, blank_image
from sail_train.types import BadSample, Conversation


def test_blank_images_keep_their_size_and_nothing_else(make_conversation: Callable[..., Conversation]) -> None:
    original = make_conversation(3, images=2)
    blanked = blank(original)
    for before, after in zip(original.images, blanked.images, strict=True):
        image = Image.open(io.BytesIO(after))
        assert image.size == Image.open(io.BytesIO(before)).size
        assert np.unique(np.asarray(image)).tolist() == [128]
    assert blanked.messages == original.messages and blanked.answer == original.answer


def test_a_rotated_photo_is_blanked_upright() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (40, 20)).save(file, format="JPEG", exif=exif)
    assert Image.open(io.BytesIO(blank_image(file.getvalue()))).size == (20, 40)


def test_what_is_no_image_is_a_bad_sample() -> None:
    with pytest.raises(BadSample):
        blank_image(b"no image")
