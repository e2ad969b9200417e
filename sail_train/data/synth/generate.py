"""`sail-train data synth ENGINE`: shards of what a rule engine draws, the same bytes for the same options.

Sample i is a pure function of (seed, engine, i) and the options; processes draw, one writes. A shard is renamed into
place when it is whole, so that the same command goes on where it was, and `--part I/N` shares the shards out over the
tasks of an array. `synth.json` says with which options a folder was begun, `dataset.json` what it came to.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track as progress_bar

from sail_train.config import choice
from sail_train.data.synth.engines import ENGINES
from sail_train.data.synth.engines.fonts import chinese, latin
from sail_train.data.synth.engines.item import LANGUAGES, LEVELS, Engine, Item, Request, pick
from sail_train.data.writer import write_shards

log = logging.getLogger(__name__)

MODES = ("think", "direct")
MIX = "mix"
_CHUNK = 8
"""Samples that a process draws between two messages."""


@dataclass(kw_only=True)
class SynthConfig:
    """What an engine is asked to make."""

    engine: str
    """A name in `ENGINES`."""
    count: int = 1000
    level: str = MIX
    """A name in `LEVELS`, or "mix": each sample's is drawn."""
    language: str = "en"
    """A name in `LANGUAGES`, or "mix"."""
    mode: str = MIX
    """"think", "direct" or "mix": whether answers open with the worked steps. What takes no steps is always direct."""
    seed: int = 0
    samples_per_shard: int = 500

    def __post_init__(self) -> None:
        choice("engine", self.engine, ENGINES)
        for name, known in (("level", LEVELS), ("language", LANGUAGES), ("mode", MODES)):
            choice(name, getattr(self, name), dict.fromkeys((*known, MIX)))
        for name in ("count", "samples_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be 0 or more")


def draw(config: SynthConfig, index: int) -> tuple[Item, Request, str]:
    """Sample `index`: the item, what it was asked to be, and its mode."""
    rng = np.random.default_rng([config.seed, zlib.crc32(config.engine.encode()), index])
    request = Request(
        level=_drawn(rng, config.level, LEVELS),
        language=_drawn(rng, config.language, LANGUAGES),
    )
    mode = _drawn(rng, config.mode, MODES)
    item = engine(config.engine)[0](rng, request)
    return item, request, mode if item.thought else "direct"


def engine(name: str) -> tuple[Engine, bool]:
    """(an engine's `make`, whether its pictures hold text of the asked language)."""
    module = importlib.import_module(choice("engine", name, ENGINES))
    return module.make, module.WRITES


def files(config: SynthConfig, index: int) -> dict[str, Any]:
    """The files of sample `index`, as a webdataset writer takes them."""
    item, request, mode = draw(config, index)
    images = {f"{place}.png": png(image) for place, image in enumerate(item.images)}
    record = json.dumps(_record(item, request, mode, config), ensure_ascii=False, separators=(",", ":"))
    return {"__key__": f"{config.engine}_{index:08d}", **images, "json": record.encode()}


def response(item: Item, mode: str) -> str:
    r"""What the assistant says; a \boxed{} after a thought, and where the verifier reads nothing else."""
    boxed = rf"\boxed{{{item.answer}}}"
    if mode == "think":
        return f"<think>\n{item.thought}\n</think>\n\n{boxed}"
    return boxed if item.verifier == "math" else item.answer


def png(image: Image.Image) -> bytes:
    """Pixels alone: no date, no version, nothing that the image carries along."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", image.size, image.convert("RGB").tobytes()).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def generate(
    config: SynthConfig,
    out: Path,
    *,
    jobs: int = 1,
    part: tuple[int, int] = (0, 1),
    track: Callable[[Iterable[Any], int], Iterable[Any]] = lambda samples, total: samples,
) -> dict[str, Any]:
    """Writes the shards of a part into `out`, those apart that are there; returns what stands in the folder now.

    `track` is given the samples of each shard and their number, and passes them on: a progress bar.

    Raises:
        ValueError: `out` holds something else, a font or the extra `synth` is missing, or jobs or part make no sense.
    """
    _check(config, jobs, part)
    _claim(config, out)
    starts = range(0, config.count, config.samples_per_shard)
    shards = [(shard_path(config, out, number), start) for number, start in enumerate(starts)]
    mine = [(path, start) for path, start in shards[part[0] :: part[1]] if not path.exists()]
    with _drawing(jobs) as each:
        for path, start in mine:
            end = min(start + config.samples_per_shard, config.count)
            _write(track(each(partial(files, config), range(start, end)), end - start), path)
            log.info("%s: %d samples", path.name, end - start)
    return _summary(config, out, [path for path, _ in shards])


def shard_path(config: SynthConfig, out: Path, number: int) -> Path:
    return out / f"{config.engine}-{number:06d}.tar"


def _drawn(rng: np.random.Generator, wanted: str, names: tuple[str, ...]) -> str:
    # drawn in any case, so that what follows does not depend on what was asked
    drawn = pick(rng, names)
    return drawn if wanted == MIX else wanted


def _record(item: Item, request: Request, mode: str, config: SynthConfig) -> dict[str, Any]:
    """The sample's JSON (design: the sample on disk)."""
    asked = [*({"type": "image"} for _ in item.images), {"type": "text", "text": item.question}]
    said = [{"type": "text", "text": response(item, mode)}]
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
        "answer": item.answer,
        "verifier": item.verifier,
        "mode": mode,
        "source": f"synth_{config.engine}",
        "meta": {"engine": config.engine, "task": item.task, **asdict(request), "facts": item.facts},
    }


def _check(config: SynthConfig, jobs: int, part: tuple[int, int]) -> None:
    if jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1")
    if not 0 <= part[0] < part[1]:
        raise ValueError(f"part={part[0]}/{part[1]} must be I/N with I from 0 to N - 1")
    if engine(config.engine)[1]:
        latin("sans")
        if config.language != "en":
            chinese()


def _claim(config: SynthConfig, out: Path) -> None:
    """Writes down what the folder is for; ValueError if it is for something else."""
    wanted, note = asdict(config), out / "synth.json"
    if note.is_file():
        try:
            found = json.loads(note.read_text())
        except ValueError:
            found = None
        if found != wanted:
            raise ValueError(f"{out} was begun with other options ({note}); name another folder, or remove it")
        return
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and not of this command; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    _replace(note, wanted)


def _replace(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(aside, path)


@contextmanager
def _drawing(jobs: int) -> Iterator[Any]:
    """A map that keeps the order: in this process, or over `jobs` of them."""
    if jobs == 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield partial(pool.imap, chunksize=_CHUNK)


def _write(samples: Iterable[dict[str, Any]], path: Path) -> None:
    aside = path.with_name(f".{path.stem}.{os.getpid()}")
    try:
        (written,) = write_shards(samples, aside, path.stem, 10**9, overwrite=True)
        os.replace(written, path)
    finally:
        for left in aside.glob("*") if aside.is_dir() else ():
            left.unlink()
        if aside.is_dir():
            aside.rmdir()


def _summary(config: SynthConfig, out: Path, shards: list[Path]) -> dict[str, Any]:
    """What stands in the folder; written down once all shards of all parts are there."""
    there = [path for path in shards if path.exists()]
    missing = len(shards) - len(there)
    summary = {
        "samples": config.count if not missing else None,
        "shards": len(there),
        "bytes": sum(path.stat().st_size for path in there),
        "source": f"sail-train data synth {config.engine}",
        "license": "Apache-2.0",
        "missing_shards": missing,
    }
    if not missing:
        _replace(out / "dataset.json", {name: value for name, value in summary.items() if name != "missing_shards"})
    return summary


def run(argv: list[str]) -> int:
    """The command over an engine; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="sail-train data synth",
        description="Write shards of what a rule engine draws; the same options give the same bytes.",
        epilog="example: sail-train data synth chart --count 20000 --language mix --jobs 8 data/chart",
    )
    parser.add_argument("engine", metavar="ENGINE", help=", ".join(ENGINES))
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the shards; goes on where an earlier run was")
    parser.add_argument("--count", type=int, default=SynthConfig.count, help="samples")
    parser.add_argument("--level", default=MIX, help=f"{', '.join(LEVELS)} or mix (default)")
    parser.add_argument("--language", default=SynthConfig.language, help="en (default), zh or mix")
    parser.add_argument("--mode", default=MIX, help="think, direct or mix (default): whether answers show their steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples-per-shard", type=int, default=SynthConfig.samples_per_shard)
    parser.add_argument("--jobs", type=int, default=1, help="processes that draw")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="only every N-th shard from the I-th on")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse_args(argv)
    names = ("engine", "count", "level", "language", "mode", "seed", "samples_per_shard")
    try:
        config = SynthConfig(**{name: getattr(args, name) for name in names})
        summary = generate(config, args.out, jobs=args.jobs, part=_part(args.part), track=_bar)
    except ValueError as error:
        parser.error(str(error))
    _show(summary, as_json=args.json)
    return 0


def _part(text: str) -> tuple[int, int]:
    place, _, count = text.partition("/")
    if not (place.isdecimal() and count.isdecimal()):
        raise ValueError(f"part={text!r} must be I/N, such as 0/4")
    return int(place), int(count)


def _bar(samples: Iterable[Any], total: int) -> Iterable[Any]:
    """On a terminal a bar for each shard."""
    console = Console(stderr=True)
    return progress_bar(samples, "drawing", total=total, console=console, disable=not console.is_terminal)


def _show(summary: dict[str, Any], *, as_json: bool) -> None:
    console = Console(soft_wrap=True, highlight=False)
    if as_json:
        console.print_json(json.dumps(summary))
        return
    missing = f", {summary['missing_shards']} of other parts still to come" if summary["missing_shards"] else ""
    console.print(f"{summary['shards']} shards, {summary['bytes'] / 2**20:.1f} MiB{missing}")
