"""`sail-train data check`: reads every sample of some shards the way training would, and says what is wrong.

Structure, conversation, answers, images down to the last pixel, videos' frames, repetitions, and with a processor
lengths in tokens. Shards are read by processes beside each other (`check_shard`); each leaves its findings in a file,
and those are put together in the order of the shards, so that the report does not depend on the processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from sail_train.config import to_mapping
from sail_train.data.config import SourceConfig
from sail_train.data.listing import expand
from sail_train.data.measure import parsers
from sail_train.data.tools.check_shard import EXAMPLES, MEASURES, Findings, Limits, check_shard, findings_path
from sail_train.data.tools.jobs import add_arguments, over_shards, parse_part
from sail_train.data.tools.processors import open_processor

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor


@dataclass(kw_only=True)
class CheckReport:
    """What was found."""

    shards: int = 0
    samples: int = 0
    """Good ones."""
    images: int = 0
    videos: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    """Good samples by mode."""
    bad: Counter[str] = field(default_factory=Counter)
    """Bad samples by reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first bad samples of each reason, with shard and key."""
    failed: dict[str, str] = field(default_factory=dict)
    """Shards that could not be read at all, and why."""
    repeated_keys: int = 0
    """Keys that an earlier shard of the same source, which is a folder, has too: allowed, but nothing then tells the
    samples apart."""
    repeated_contents: int = 0
    """Samples whose text, images and videos an earlier one has too."""
    repeated_images: int = 0
    """Images whose very bytes were met before: usual where a picture has many questions."""
    lengths: dict[str, list[float]] = field(default_factory=dict)
    """Minimum, median, 95th percentile and maximum of tokens, trained tokens and patches a sample."""

    def is_good(self, *, strict: bool) -> bool:
        """No bad sample and at least one good; with `strict`, no repetition of keys or samples either."""
        repeated = strict and (self.repeated_keys or self.repeated_contents)
        return not self.bad and not self.failed and self.samples > 0 and not repeated


def check_shards(
    patterns: Sequence[str],
    *,
    sample_format: str = "messages",
    processor: SailVLProcessor | Path | None = None,
    seq_length: int = sys.maxsize,
    max_patches: int = sys.maxsize,
    max_tiles: int | None = None,
    fps: float | None = None,
    jobs: int = 1,
    part: tuple[int, int] = (0, 1),
) -> CheckReport:
    """Reads all samples; with a processor measures them against the limits.

    Args:
        processor: itself, or the folder that each process loads it from.
        max_tiles, fps: what a source may set for its images and videos.

    Raises:
        ValueError: patterns that name no shards, an unknown format, a folder without a processor, or a limit that
            makes no sense.
    """
    needy = {"seq_length": seq_length < sys.maxsize, "max_patches": max_patches < sys.maxsize}
    needy["max_tiles"] = max_tiles is not None
    if processor is None and any(needy.values()):
        option = next(name for name, given in needy.items() if given).replace("_", "-")
        raise ValueError(f"--{option} needs --processor: nothing else says how many tokens and patches a sample has")
    source = SourceConfig(format=sample_format, max_tiles=max_tiles, fps=fps)
    parsers({"check": source})
    if isinstance(processor, Path):
        opened = open_processor(processor)  # what is wrong with it is said once, before any process starts
        processor = processor if jobs > 1 else opened
    limits = Limits(source=source, seq_length=seq_length, max_patches=max_patches)
    paths = expand("check", list(patterns))[part[0] :: part[1]]
    with tempfile.TemporaryDirectory(prefix="sail-train-check-") as folder:
        arguments = (folder, limits, processor)
        summary = over_shards(paths, check_shard, arguments, jobs=jobs, title="checking")
        return _together(paths, Path(folder), summary.failed)


def _together(paths: Sequence[str], folder: Path, failed: dict[str, str]) -> CheckReport:
    """One report of all shards' findings."""
    report = CheckReport(shards=len(paths), failed=failed)
    read = [path for path in paths if path not in failed]
    found = [Findings.load(findings_path(folder, path)) for path in read]
    for each in found:
        report.samples += each.samples
        report.images += each.images
        report.videos += each.videos
        report.modes.update(each.modes)
        report.bad.update(each.bad)
        for reason, examples in each.examples.items():
            kept = report.examples.setdefault(reason, [])
            kept += examples[: EXAMPLES - len(kept)]
    keys: dict[str, list[np.ndarray]] = {}
    for path, each in zip(read, found, strict=True):
        keys.setdefault(os.path.dirname(path), []).append(each.keys)
    report.repeated_keys = sum(map(_repeated, keys.values()))
    report.repeated_contents = _repeated([each.contents for each in found])
    report.repeated_images = _repeated([each.image_contents for each in found])
    measured = np.concatenate([each.measured for each in found]) if found else np.zeros((0, len(MEASURES)))
    if len(measured):
        for name, values in zip(MEASURES, measured.T, strict=True):
            report.lengths[name] = [float(value) for value in np.percentile(values, (0, 50, 95, 100))]
    return report


def _repeated(digests: list[np.ndarray]) -> int:
    """How many of all digests were there before: 16 bytes of memory each, for what is larger see `data dedupe`."""
    everything = np.concatenate(digests) if digests else np.zeros(0)
    return len(everything) - len(np.unique(everything))


def run(argv: list[str]) -> int:
    """The command; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(
        prog="sail-train data check",
        description="Read every sample of some shards, decode its images and videos, and report what training would "
        "refuse.",
        epilog="example: sail-train data check 'data/llava/*.tar' --processor runs/tiny/align --jobs 8",
    )
    add_arguments(parser)
    parser.add_argument("--format", default="messages", help="how samples are read: messages (default) or caption")
    parser.add_argument("--processor", type=Path, help="model, run or tokenizer folder: measures samples in tokens")
    parser.add_argument("--seq-length", type=int, default=sys.maxsize, help="longer samples are bad; needs --processor")
    parser.add_argument("--max-patches", type=int, default=sys.maxsize, help="likewise with more patches")
    parser.add_argument("--max-tiles", type=int, help="most tiles of one image, as data.sources.NAME.max_tiles sets it")
    parser.add_argument("--fps", type=float, help="frames a second of videos, as data.sources.NAME.fps sets it")
    parser.add_argument("--strict", action="store_true", help="repeated keys (in one folder) or contents fail too")
    args = parser.parse_args(argv)
    try:
        report = check_shards(
            args.shards,
            sample_format=args.format,
            processor=args.processor,
            seq_length=args.seq_length,
            max_patches=args.max_patches,
            max_tiles=args.max_tiles,
            fps=args.fps,
            jobs=args.jobs,
            part=parse_part(args.part),
        )
    except ValueError as error:
        parser.error(str(error))
    if args.json:
        Console(soft_wrap=True).print_json(json.dumps(to_mapping(report)))
    else:
        show(report)
    return 0 if report.is_good(strict=args.strict) else 1


def show(report: CheckReport) -> None:
    """Prints the report."""
    console = Console(soft_wrap=True, highlight=False)
    modes = ", ".join(f"{count} {mode}" for mode, count in report.modes.most_common())
    videos = f", {report.videos} videos" if report.videos else ""
    console.print(f"{report.shards} shards, {report.samples} good samples ({modes}), {report.images} images{videos}")
    for reason, count in report.bad.most_common():
        console.print(f"{count} bad: {reason}", style="red")
        for example in report.examples[reason]:
            console.print(f"    {example}", markup=False)
    for shard, reason in report.failed.items():
        console.print(f"cannot be read: {shard}: {reason}", style="red", markup=False)
    if report.repeated_keys or report.repeated_contents:
        console.print(
            f"{report.repeated_keys} keys (within a folder) and {report.repeated_contents} whole samples are repeated",
            style="yellow",
        )
    if report.repeated_images:
        console.print(f"{report.repeated_images} of {report.images} images were met before, byte for byte")
    if report.lengths:
        table = Table("a sample's", "min", "median", "95%", "max")
        for name, values in report.lengths.items():
            table.add_row(name, *(f"{value:.0f}" for value in values))
        console.print(table)
