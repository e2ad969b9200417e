"""Downloaded parts -> a model folder of ours: an encoder, a language model, and an adapter that is fresh or given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sail_train.export.parts import make_processor, write_parts
from sail_train.export.shards import SHARD_SIZE
from sail_train.model.config import ModelConfig
from sail_train.model.folder import resolve, weight_files
from sail_train.model.shapes import check_shapes


def assemble(
    config: ModelConfig,
    paths: Mapping[str, str],
    out: str | Path,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    system: str | None = None,
    shard_size: str = SHARD_SIZE,
) -> Path:
    """Write the model of `config` to `out`, with the parts at `paths`; what they lack is drawn from `seed`.

    A part is a folder of ours, or one as released (`model.released.FAMILIES`); the config's own `path` of a part counts
    where `paths` has none. The tokenizer is the language model's, the tokens of the chat style added.
    ValueError if vision or language is nowhere given, or a folder does not fit the config.
    """
    given = {part: paths.get(part) or getattr(config, part).path for part in ("vision", "adapter", "language")}
    if missing := [part for part in ("vision", "language") if not given[part]]:
        raise ValueError(f"{missing[0]}= is missing: the folder whose {missing[0]} part the model gets")
    folders = {part: resolve(path) for part, path in given.items() if path}
    for part, folder in folders.items():  # before the tokenizer is looked for: a vision folder has none
        weight_files(folder)
        check_shapes(config, folder, part)
    tokenizer = Path(config.language.tokenizer) if config.language.tokenizer else folders["language"]
    processor = make_processor(config, tokenizer, system)
    return write_parts(
        config, folders, Path(out), processor=processor, dtype=dtype, seed=seed, shard_size=shard_size
    )  # fmt: skip
