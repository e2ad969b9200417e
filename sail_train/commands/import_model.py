"""`sail-train import`: a released SAIL-VL2 folder -> a model of ours."""

from __future__ import annotations

import argparse
from typing import Any

from sail_train import dist
from sail_train.commands.assemble import check_keys, split_tokens
from sail_train.job.overrides import parse_tokens

EPILOG = """\
keys:
  out=PATH           the folder to make; it must not be there
  dtype=bfloat16     of the weights; as they were saved without it
  model.KEY=VALUE    in place of what the folder says, such as model.image.max_tiles=12
example:
  sail-train import SAIL-VL2-2B out=models/sail_vl2_2b
"""


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="sail-train import",
        description="Makes a model folder of ours of a released SAIL-VL2: weights, config, tokenizer and processor.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="the released folder")
    parser.add_argument("tokens", nargs="*", metavar="KEY=VALUE", help="see below")
    parser.add_argument("--shard-size", default="5GB", help="largest weight file (default: %(default)s)")
    options = parser.parse_intermixed_args(arguments)
    own, tokens = split_tokens(options.tokens, ("out", "dtype"))
    if "out" not in own:
        raise ValueError("out= is missing: the folder to make")
    check_keys(tokens, ("out", "dtype"))
    overrides = model_values(tokens)
    dist.setup_logging()
    from sail_train.export.importing import import_released

    import_released(
        options.source, own["out"], overrides=overrides, dtype=own.get("dtype"), shard_size=options.shard_size
    )  # fmt: skip
    return 0


def model_values(tokens: list[str]) -> list[tuple[str, Any]]:
    """(key below the model's config, value) of `model.KEY=VALUE` tokens; ValueError for any other."""
    request = parse_tokens(tokens)
    wrong = [name for name in ("recipe", "stage", "parent", "force") if getattr(request, name)]
    wrong += [*request.groups, *(item.key for item in request.assignments if item.delete)]
    wrong += [item.key for item in request.assignments if not item.key.startswith("model.")]
    if wrong:
        raise ValueError(f"{wrong[0]}: import takes out=PATH, dtype=NAME and model.KEY=VALUE")
    return [(item.key.removeprefix("model."), item.value) for item in request.assignments]
