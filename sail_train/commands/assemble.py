"""`sail-train assemble`: a preset, an encoder and a language model as downloaded -> a model to train."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from sail_train import dist
from sail_train.config import nearest
from sail_train.job.compose import CONFIGS, Configs
from sail_train.job.model import compose_model
from sail_train.job.overrides import GROUPS, parse_tokens
from sail_train.model.config import ModelConfig

OURS = ("vision", "language", "adapter", "out", "seed", "dtype", "system")
"""Keys that are this command's; all others are the model's."""

EPILOG = """\
keys:
  model=NAME                 the preset whose shapes the parts have
  vision=PATH language=PATH  folders: released SAIL-ViT, AIMv2 or SAIL-VL2, Qwen3, or ours
  adapter=PATH               a folder of ours or a released SAIL-VL2; without it the adapter is drawn from seed
  seed=0  dtype=bfloat16  system=TEXT
  out=PATH                   the folder to make; it must not be there
examples:
  sail-train assemble model=sail_vl2_2b vision=SAILViT-Huge-600M-448px language=Qwen3-1.7B out=models/start
  sail-train assemble model=sail_vl2_2b model.image.max_tiles=12 vision=V language=L out=O dtype=float32
"""


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="sail-train assemble",
        description="Makes a model folder of downloaded parts and a fresh adapter, tokenizer and processor included.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tokens", nargs="+", metavar="KEY=VALUE", help="see below")
    parser.add_argument("--config-dir", type=Path, action="append", default=[], help="a folder of your own configs")
    parser.add_argument("--shard-size", default="5GB", help="largest weight file (default: %(default)s)")
    options = parser.parse_intermixed_args(arguments)
    own, tokens = split_tokens(options.tokens, OURS)
    if "out" not in own:
        raise ValueError("out= is missing: the folder to make")
    if not (seed := own.get("seed", "0")).isdecimal():
        raise ValueError(f"seed={seed} should be a whole number, 0 or more")
    check_keys(tokens, OURS)
    config = compose_model(Configs(folders=(CONFIGS, *options.config_dir)), parse_tokens(tokens))
    dist.setup_logging()
    from sail_train.export.assemble import assemble

    assemble(
        config,
        {part: own[part] for part in ("vision", "language", "adapter") if part in own},
        own["out"],
        dtype=own.get("dtype", "bfloat16"),
        seed=int(seed),
        system=own.get("system"),
        shard_size=options.shard_size,
    )
    return 0


def check_keys(tokens: list[str], names: tuple[str, ...]) -> None:
    """ValueError for a key that is nearly one of the command's `names`, or a model's without its "model."."""
    for token in tokens:
        key = token.partition("=")[0]
        first, dot, _ = key.partition(".")
        if dot and first in {field.name for field in fields(ModelConfig)}:
            raise ValueError(f"{key}: unknown key; did you mean 'model.{key}'?")
        if not dot and key not in ("model", "data_dir", *GROUPS) and (near := nearest(key, (*names, "model"))):
            raise ValueError(f"{key}: unknown key; did you mean {near!r}?")


def split_tokens(tokens: list[str], names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """(values of the keys in `names`, the other tokens); ValueError for one that is empty or comes twice."""
    own: dict[str, str] = {}
    others = []
    for token in tokens:
        key, equals, value = token.partition("=")
        if key not in names or not equals:
            others.append(token)
            continue
        if not value or key in own:
            raise ValueError(f"{token}: {key}= {'comes twice' if key in own else 'needs a value'}")
        own[key] = value
    return own, others
