"""The data that is measured on, made once in a folder: shards of JPEGs with conversations, and a tokenizer.

The pictures are crops of the two photographs that scikit-learn ships, 500 x 375 at a quality that makes them some
100 KB, 256 different ones in turn; a conversation asks for a caption of some thirty words.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sail_train.data.index import ensure_index
from sail_train.data.writer import write_shards
from sail_train.processor.tokenizer import train_tokenizer

WIDTH, HEIGHT, QUALITY, DIFFERENT = 500, 375, 97, 256
WORDS = """a an the of in on at with and red green blue yellow old small large bright wooden roof petals temple sky
garden stands grows under behind tree stone water window door light shadow pattern flower painted carved corner
above colour photograph shows detail leaves morning evening warm cold wide narrow tall low quiet""".split()


def photographs() -> list[bytes]:
    """JPEGs, each a crop that no other has."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    originals, found = load_sample_images().images, []
    for number in range(DIFFERENT):
        photo = originals[number % 2]
        top, left = (int(rng.integers(0, size)) for size in (photo.shape[0] - HEIGHT, photo.shape[1] - WIDTH))
        crop = photo[top : top + HEIGHT, left : left + WIDTH]
        buffer = io.BytesIO()
        Image.fromarray(crop[:, ::-1] if number % 4 > 1 else crop).save(buffer, "JPEG", quality=QUALITY)
        found.append(buffer.getvalue())
    return found


def conversations(count: int) -> Iterator[dict[str, Any]]:
    """Samples as webdataset's files: N.jpg and N.json."""
    rng = np.random.default_rng(1)
    pictures = photographs()
    for number in range(count):
        answer = " ".join(WORDS[place] for place in rng.integers(0, len(WORDS), int(rng.integers(20, 40))))
        content = [{"type": "image"}, {"type": "text", "text": "Describe the picture in a sentence."}]
        answered = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        record = {"messages": [{"role": "user", "content": content}, answered]}
        picture = pictures[number % len(pictures)]
        yield {"__key__": f"{number:07d}", "jpg": picture, "json": json.dumps(record).encode()}


def make(folder: Path, samples: int, per_shard: int) -> Path:
    """`folder`/made-SAMPLES with the shards of each contender and the tokenizer; what is there is kept."""
    made = folder / f"made-{samples}"
    if (made / "done").exists():
        return made
    shutil.rmtree(made, ignore_errors=True)
    paths = write_shards(conversations(samples), made / "plain", "made", per_shard)
    for place in ("indexed", "energon"):  # a folder each, since either writes indexes beside the shards
        (made / place).mkdir()
        for path in paths:
            os.link(path, made / place / path.name)
    for path in sorted((made / "indexed").glob("*.tar")):
        ensure_index(str(path))
    train_tokenizer([" ".join(WORDS)] * 4, 400).save_pretrained(made / "tokenizer")
    (made / "done").touch()
    return made
