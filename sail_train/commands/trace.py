"""`sail-train data trace`: the samples of each global step of a stage, one JSON line a step, without a model."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_train import dist, train
from sail_train.job.compose import CONFIGS, Configs
from sail_train.job.job import resolve
from sail_train.job.overrides import parse_tokens

if TYPE_CHECKING:
    from sail_train.loops.config import RunConfig
    from sail_train.processor.processor import SailVLProcessor

log = logging.getLogger(__name__)

EPILOG = """\
examples:
  sail-train data trace recipe=tiny stage=pretrain --steps 20 --out trace.jsonl
  sail-train data trace recipe=tiny stage=pretrain --start 1233 --steps 1 --out step-1234.jsonl
  sail-train data trace recipe=tiny stage=pretrain --state runs/tiny/pretrain --steps 5 --out next.jsonl
  sail-train data trace recipe=tiny stage=pretrain --ranks 4 --workers 2 --steps 20 --out same.jsonl
"""


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="sail-train data trace",
        description="Writes which samples each global step of a stage is made of. The file is the same whatever the "
        "ranks and workers. Step 1 is the first step of a run, as in metrics.jsonl (where skipped steps count here).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_options(parser)
    parser.add_argument("--ranks", type=_positive, default=1, help="ranks to play, in this one process")
    parser.add_argument("--workers", type=int, help="data workers of each rank; default: data.workers")
    parser.add_argument("--steps", type=_positive, required=True, help="steps to list")
    parser.add_argument("--start", type=int, help="steps before the first that is listed; packed, not decoded")
    parser.add_argument("--state", type=Path, help="go on from here: a run, a checkpoint, or what --save-state wrote")
    parser.add_argument("--save-state", type=Path, help="write where the streams stand after the last step")
    parser.add_argument("--no-decode", action="store_true", help="faster: list what was packed, with unreadable pixels")
    parser.add_argument("--out", type=Path, required=True, help="file to write, one JSON line a step")
    options = parser.parse_intermixed_args(arguments)
    dist.setup_logging()
    config = resolve(Configs(folders=(CONFIGS, *options.config_dir)), parse_tokens(options.tokens)).config
    written = _write(config, options)
    if written < options.steps:
        log.warning("the data is exhausted after %d of %d steps", written, options.steps)
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def _write(config: RunConfig, options: argparse.Namespace) -> int:
    """Writes the files; returns the number of steps."""
    from sail_train.data.trace import Trace

    data = config.data if options.workers is None else dataclasses.replace(config.data, workers=options.workers)
    positions = read_state(options.state) if options.state else None
    aside, written = options.out.with_name(f".{options.out.name}.partial"), 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with Trace(
        data,
        make_processor(config),
        seed=config.seed,
        ranks=options.ranks,
        positions=positions,
        start=options.start,
        decode=not options.no_decode,
    ) as trace:
        with aside.open("w", encoding="utf-8") as file:
            for record in itertools.islice(trace, options.steps):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                written += 1
        os.replace(aside, options.out)
        if options.save_state:
            options.save_state.write_text(json.dumps({"positions": trace.positions()}) + "\n")
    return written


def make_processor(config: RunConfig) -> SailVLProcessor:
    """The stage's processor; where its parent is yet to be trained, that of the model's own tokenizer."""
    from sail_train.loops import setup

    try:
        return setup.make_processor(config)
    except ValueError as error:
        if not Path(config.model.language.tokenizer_path).is_dir():
            raise
        log.warning("%s; the trace is that of the tokenizer in %s", error, config.model.language.tokenizer_path)
        return setup.make_processor(dataclasses.replace(config, parents={}))


def read_state(path: Path) -> Mapping[str, Any]:
    """The positions in a file, a checkpoint, or the newest checkpoint of a run.

    Raises:
        ValueError: there are none.
    """
    from sail_train.engine.checkpoint import Checkpoints

    found: Path | None = path
    if (path / "checkpoints").is_dir():
        found, refused = Checkpoints(path / "checkpoints", keep=1).latest()
        if found is None:
            raise ValueError(f"--state {path}: no checkpoint that verifies {'; '.join(refused)}")
    assert found is not None
    file = found / "state.json" if found.is_dir() else found
    try:
        state = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--state {path}: {error}; give a run, a checkpoint, or a file of --save-state") from None
    while isinstance(state, dict) and "positions" not in state and "work" in state:
        state = state["work"]
    if not isinstance(state, dict) or not isinstance(state.get("positions"), dict):
        raise ValueError(f"--state {path}: {file} holds no positions of a supervised stage's data")
    positions: dict[str, Any] = state["positions"]
    return positions
