"""What a sample measures, as columns of the index: `data filter --measure` writes them, filters and balances use them.

`width`, `height` (pixels of the first image, upright), `aspect` (the longest side over the shortest, the largest of
all its images), `num_images`, `num_videos`, `num_chars` (of all messages), `language`, and with a processor
`num_tokens` and `num_patches`. A sample that cannot be read has nulls everywhere: no condition holds for it.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_train.data.index import add_columns, ensure_index
from sail_train.data.tools.jobs import SKIPPED
from sail_train.data.tools.processors import open_processor
from sail_train.data.tools.reading import all_text, conversations
from sail_train.processor.images import image_size
from sail_train.types import BadSample, Conversation

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

COLUMNS = ("width", "height", "aspect", "num_images", "num_videos", "num_chars", "language")
TOKEN_COLUMNS = ("num_tokens", "num_patches")
"""Those that need a processor."""


def check_measured(column: str, table: Any) -> None:
    """ValueError if an index lacks a column that only needs to be measured."""
    if column not in table.column_names and column in COLUMNS + TOKEN_COLUMNS:
        more = " --processor FOLDER" if column in TOKEN_COLUMNS else ""
        raise ValueError(f"{column!r} is not measured yet: `sail-train data filter --measure{more}` writes it")


HAN_SHARE = 0.3
"""Of all letters, from which a text is Chinese: a Han character stands for some three Latin letters, and names and
terms stay in Latin."""
KANA_SHARE = 0.05
"""Of all letters, from which a text with Han characters is Japanese (kana) or Korean (hangul), and so "other"."""
ENGLISH_SHARE = 0.9
"""Of all letters, from which those a to z make a text English; accents and other scripts make it "other"."""

_LETTERS = {
    "han": re.compile("[\u3400-\u4dbf\u4e00-\u9fff]"),
    "kana": re.compile("[\u3040-\u30ff\uac00-\ud7af]"),
    "latin": re.compile("[A-Za-z]"),
}
_MARKUP = re.compile(r"</?[a-z]+>|\\[A-Za-z]+")
"""Tags and LaTeX commands: Latin letters in a text of any language."""


def language(text: str) -> str:
    """ "en", "zh" or "other" by the scripts of its letters: cheap, and blind between languages of one script.

    A French text without accents is "en" to it; a text without any letter (a number) is "other".
    """
    text = _MARKUP.sub(" ", text)
    letters = sum(map(str.isalpha, text))
    if not letters:
        return "other"
    share = {name: len(pattern.findall(text)) / letters for name, pattern in _LETTERS.items()}
    if share["kana"] >= KANA_SHARE:
        return "other"
    if share["han"] >= HAN_SHARE:
        return "zh"
    return "en" if share["latin"] >= ENGLISH_SHARE else "other"


def measure(conversation: Conversation, processor: SailVLProcessor | None) -> dict[str, Any]:
    """The columns' values for one sample; BadSample if its images or, with a processor, its tokens are refused."""
    sizes = [image_size(image) for image in conversation.images]
    height, width = sizes[0] if sizes else (None, None)
    values: dict[str, Any] = {
        "width": width,
        "height": height,
        "aspect": max((max(size) / min(size) for size in sizes), default=None),
        "num_images": len(sizes),
        "num_videos": len(conversation.videos),
        "num_chars": sum(len(message.text) for message in conversation.messages),
        "language": language(all_text(conversation)),
    }
    if processor is not None:
        encoded = processor.encode(conversation)
        values |= {"num_tokens": encoded.num_tokens, "num_patches": encoded.num_patches}
    return values


def measure_shard(shard: str, processor: str | None, sample_format: str, redo: bool) -> Mapping[str, Any]:
    """Writes the columns into a shard's index, unless they are there: the work of one shard."""
    names = COLUMNS + (TOKEN_COLUMNS if processor else ())
    if not redo and all(name in ensure_index(shard).column_names for name in names):
        return {SKIPPED: 1}
    measuring = _processor(processor) if processor else None
    rows, bad = [], Counter[str]()
    for sample in conversations(shard, sample_format):
        try:
            rows.append(measure(_good(sample), measuring))
        except BadSample as error:
            bad[error.reason] += 1
            rows.append({})
    add_columns(shard, columns_of(rows, names))
    return {"measured": len(rows) - bad.total(), **({"bad": dict(bad)} if bad else {})}


def columns_of(rows: Iterable[Mapping[str, Any]], names: Iterable[str]) -> dict[str, Any]:
    """Arrow columns out of rows that may lack values; the type does not depend on what a shard happens to hold."""
    import pyarrow

    rows = list(rows)
    kinds = {"language": pyarrow.string(), "aspect": pyarrow.float64()}
    return {name: pyarrow.array([row.get(name) for row in rows], kinds.get(name, pyarrow.int64())) for name in names}


def _good(sample: Conversation | BadSample) -> Conversation:
    if isinstance(sample, BadSample):
        raise sample
    return sample


@functools.lru_cache(maxsize=1)
def _processor(folder: str) -> SailVLProcessor:
    """Once a process."""
    return open_processor(Path(folder))
