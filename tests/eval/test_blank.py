from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from sail_train.eval.blank import blank
from sail_train.processor.processor import SailVLProcessor
from sail_train.types import Conversation


def test_a_blank_prompt_is_that_of_grey_images_of_the_same_size(
    processor: SailVLProcessor, make_conversation: Callable[..., Conversation]
) -> None:
    seen = processor.prompt(make_conversation(3, images=2), uid="a")
    blanked = blank(seen)
    file = io.BytesIO()
    Image.new("RGB", Image.open(io.BytesIO(make_conversation(3).images[0])).size, (128, 128, 128)).save(file, "PNG")
    grey = Conversation(**{**vars(make_conversation(3, images=2)), "images": (file.getvalue(),) * 2})
    assert np.array_equal(blanked.patches, processor.prompt(grey, uid="a").patches)
    assert not np.array_equal(blanked.patches, seen.patches)
    assert (blanked.uid, blanked.grids) == (seen.uid, seen.grids)
    assert blanked.input_ids.tolist() == seen.input_ids.tolist()
