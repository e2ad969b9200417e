"""`sail-train model`: what a model is made of and what it costs, before a weight is downloaded.

Parameters are counted on a model built without weights; tokens and FLOPs follow from its shapes (docs/numerics.md).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sail_train.job.compose import CONFIGS, Configs
from sail_train.job.model import compose_model
from sail_train.job.overrides import parse_tokens
from sail_train.model.config import ModelConfig

EPILOG = """\
examples:
  sail-train model                                         the presets there are
  sail-train model model=sail_vl2_2b
  sail-train model model=sail_vl2_2b model.language.hidden_size=1024 --json
"""

IMAGES = ((448, 448), (720, 1280), (1792, 1792))
"""(height, width) of the images whose tokens and FLOPs are told."""

CONTEXT = 8192
"""Tokens before a token whose attention is told."""

BYTES = {"bfloat16": 2, "float32": 4}


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="sail-train model",
        description="Prints a model's parts, parameters, tokens, FLOPs and memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tokens", nargs="*", metavar="model=NAME", help="and overrides such as model.image.max_tiles=4")
    parser.add_argument("--config-dir", type=Path, action="append", default=[], help="a folder of your own configs")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_intermixed_args(arguments)
    configs = Configs(folders=(CONFIGS, *options.config_dir))
    request = parse_tokens(options.tokens)
    if not request.groups and not request.assignments and not options.json:
        sys.stdout.write("\n".join(configs.names("model")) + "\n")
        return 0
    facts = describe(request.groups.get("model", ""), compose_model(configs, request))
    if options.json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        show(facts, Console(highlight=False, emoji=False))
    return 0


def describe(name: str, config: ModelConfig) -> dict[str, Any]:
    """Everything that is told of a model, as JSON."""
    from sail_train.model.counts import build_meta, count_parameters
    from sail_train.model.flops import model_shape

    vlm = build_meta(config)
    parameters = count_parameters(vlm)
    rows = vlm.config.text_config.vocab_size
    shape, spec = model_shape(config, vocab_size=rows), config.image_spec
    images = []
    for height, width in IMAGES:
        grids = spec.grids(height, width)
        tokens = spec.tokens_of(grids)
        forward = shape.forward_flops([tokens], [r * c for r, c in grids], num_trained=0)
        images.append(
            {
                "height": height, "width": width, "pictures": len(grids), "patches": sum(r * c for r, c in grids),
                "tokens": tokens, "flops": {**forward, "total": sum(forward.values())},
            }
        )  # fmt: skip
    return {
        "model": name,
        "parts": _parts(config, rows),
        "parameters": parameters,
        "tied_embedding": rows * config.language.hidden_size if config.language.tie_word_embeddings else 0,
        "images": images,
        "flops_per_token": {"first": _token_flops(shape, 0), f"after_{CONTEXT}": _token_flops(shape, CONTEXT)},
        "weight_bytes": {dtype: size * parameters["total"] for dtype, size in BYTES.items()},
    }


def _token_flops(shape: Any, context: int) -> float:
    """Forward FLOPs of one text token behind `context` others, its logits included."""
    before = shape.forward_flops([context], [], num_trained=0)["language"] if context else 0.0
    return shape.forward_flops([context + 1], [], num_trained=1)["language"] - before


def _parts(config: ModelConfig, rows: int) -> dict[str, str]:
    vision, adapter, language = config.vision, config.adapter, config.language
    kind = vision.model["model_type"] if vision.type == "transformers" else vision.type
    experts = f", {language.num_experts_per_tok} of {language.num_experts} experts" if language.num_experts else ""
    return {
        "vision": f"{kind}, {vision.num_hidden_layers} layers of {vision.hidden_size}, patches of {vision.patch_size}",
        "adapter": f"{adapter.reduction} of {adapter.merge_size} x {adapter.merge_size}, two-layer MLP",
        "language": f"{language.model_type}, {language.num_hidden_layers} layers of {language.hidden_size}{experts}, "
        f"{rows:,} embeddings",
    }


def show(facts: dict[str, Any], console: Console) -> None:
    """The facts as tables."""
    parameters = facts["parameters"]
    table = Table(box=box.SIMPLE_HEAD, title=facts["model"], title_justify="left", title_style="bold")
    table.add_column("part")
    table.add_column("what it is")
    table.add_column("parameters", justify="right")
    for part, text in facts["parts"].items():
        table.add_row(part, text, f"{parameters[part]:,}")
    table.add_row("total", _tied_note(facts), f"{parameters['total']:,}", style="bold")
    if parameters["active"] != parameters["total"]:
        table.add_row("active", "what one token meets", f"{parameters['active']:,}")
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD, caption="forward, of one image", caption_justify="left")
    for column in ("image", "pictures", "patches", "tokens", "TFLOPs", "vision", "language"):
        table.add_column(column, justify="left" if column == "image" else "right", no_wrap=True)
    for image in facts["images"]:
        flops = image["flops"]
        table.add_row(
            f"{image['width']} x {image['height']}", f"{image['pictures']}", f"{image['patches']:,}",
            f"{image['tokens']:,}", *(_tera(flops[part]) for part in ("total", "vision", "language")),
        )  # fmt: skip
    console.print(table)
    first, later = facts["flops_per_token"].values()
    console.print(f"  one text token, forward: {first / 1e9:.4g} GFLOPs; behind {CONTEXT:,} others {later / 1e9:.4g}")
    sizes = ", ".join(f"{size / 2**30:.4g} GiB in {dtype}" for dtype, size in facts["weight_bytes"].items())
    console.print(f"  weights: {sizes}")


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.3g}"


def _tied_note(facts: dict[str, Any]) -> str:
    if not facts["tied_embedding"]:
        return ""
    twice = facts["parameters"]["total"] + facts["tied_embedding"]
    return f"tied embedding counted once; twice: {twice:,}"
