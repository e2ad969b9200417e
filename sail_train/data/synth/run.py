"""`sail-train data synth`: write the shards of every source, and the tiny tokenizer trained on their text.

Everything is written aside and renamed when complete, so an interrupted run leaves no half data set, and
`synth.json` says with which options it was made. Of two processes that want the same place one makes it and the other
waits: recipes that are started together share their data.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sail_train.data.synth import generate
from sail_train.data.synth.engines import ENGINES
from sail_train.data.synth.sources import HELD_OUT, TRAIN, Source, draw, members
from sail_train.data.synth.visual import TASKS, Options
from sail_train.data.writer import write_shards

log = logging.getLogger(__name__)

SAMPLES_PER_SHARD = 500
VOCAB_SIZE = 512
_TOKENIZER_SAMPLES = 400
"""Samples of each source whose text the tokenizer is trained on."""


def synthesize(out: Path, *, seed: int = 0, hasty: float = 0.6, scale: float = 1.0) -> None:
    """Writes train/<source>/*.tar, eval/<source>/*.tar, tokenizer/ and examples/ (pictures to chat about) into `out`.

    `hasty` is the share of the `thoughts` source's thoughts that stop before the last cells and answer from there;
    `scale` multiplies the number of training samples.
    """
    if not 0 <= hasty <= 1:
        raise ValueError(f"hasty={hasty} must be a share from 0 to 1")
    if scale <= 0:
        raise ValueError(f"scale={scale} must be above 0")
    flaw = f"{hasty:.0%} of the teacher's thoughts stop before the last cells and answer from there"
    options = {"seed": seed, "hasty": hasty, "scale": scale, "teacher": flaw}
    with _alone(out) as waited:
        if waited and _options(out) == options:
            return
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty; remove it, or name another directory with --out")
        _make(out, options)


@contextmanager
def _alone(out: Path) -> Iterator[bool]:
    """Holds the place for this process; yields whether another one had it until now."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f".{out.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waited = False
        except OSError:
            log.info("another process is making %s; waiting for it", out)
            fcntl.flock(file, fcntl.LOCK_EX)
            waited = True
        yield waited


def _options(out: Path) -> object:
    """What a place says it was made with."""
    try:
        return json.loads((out / "synth.json").read_text())
    except (OSError, ValueError):
        return None


def _make(out: Path, options: Mapping[str, Any]) -> None:
    seed, hasty, scale = options["seed"], options["hasty"], options["scale"]
    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    train = {name: replace(source, num_samples=_scaled(source, scale)) for name, source in TRAIN.items()}
    for folder, sources, held_out in (("train", train, False), ("eval", HELD_OUT, True)):
        for name, source in sources.items():
            samples = members(name, source, seed=seed, hasty=hasty, held_out=held_out)
            write_shards(samples, aside / folder / name, name, SAMPLES_PER_SHARD)
            log.info("%s/%s: %d samples", folder, name, source.num_samples)
    _write_tokenizer(aside / "tokenizer", train, seed=seed, hasty=hasty)
    _write_examples(aside / "examples", seed=seed)
    (aside / "synth.json").write_text(json.dumps(options, indent=1) + "\n")
    if out.exists():
        out.rmdir()
    aside.rename(out)


def _write_examples(directory: Path, *, seed: int) -> None:
    """A held-out picture of each visual task with what can be asked about it: something to chat about."""
    directory.mkdir(parents=True)
    lines = []
    for task, make in TASKS.items():
        sample = make(np.random.default_rng([seed, zlib.crc32(task.encode())]), Options(held_out=True))
        names = [f"{task}.{number}.png" for number in range(len(sample.images))]
        for name, image in zip(names, sample.images, strict=True):
            image.save(directory / name)
        lines.append(f"{' '.join(names)}: {sample.question} ({sample.answer})\n")
    (directory / "questions.txt").write_text("".join(lines))


def _scaled(source: Source, scale: float) -> int:
    return max(SAMPLES_PER_SHARD // 10, round(source.num_samples * scale))


def _write_tokenizer(directory: Path, sources: dict[str, Source], *, seed: int, hasty: float) -> None:
    from sail_train.processor.tokenizer import train_tokenizer

    train_tokenizer(_texts(sources, seed=seed, hasty=hasty), VOCAB_SIZE).save_pretrained(directory)


def _texts(sources: dict[str, Source], *, seed: int, hasty: float) -> Iterator[str]:
    # A fixed number per source, whatever the scale: a small data set gets the same tokenizer as a large one.
    for name, source in sources.items():
        for index in range(_TOKENIZER_SAMPLES):
            sample = draw(name, source, index, seed=seed, hasty=hasty, held_out=False)
            yield f"{sample.question} /think /no_think"
            yield sample.response


def run(argv: list[str]) -> int:
    """The command; returns its exit code. Words that begin with an engine's name are for the rule engines."""
    if argv and not argv[0].startswith("-"):
        return generate.run(argv)
    parser = argparse.ArgumentParser(
        prog="sail-train data synth",
        usage="%(prog)s [options] --out OUT\n       %(prog)s ENGINE [options] OUT",
        description="Write synthetic shards. Without ENGINE those of the tiny recipe: grids of real scanned digits, "
        f"charts, shapes and text. ENGINE is one of {', '.join(ENGINES)}; `%(prog)s ENGINE --help` has its options.",
        epilog="examples: sail-train data synth --out data/tiny; sail-train data synth chart --count 99 data/chart",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hasty", type=float, default=0.6, help="share of the teacher's thoughts that stop early")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of training samples")
    args = parser.parse_args(argv)
    try:
        synthesize(args.out, seed=args.seed, hasty=args.hasty, scale=args.scale)
    except ValueError as error:
        parser.error(str(error))
    return 0
