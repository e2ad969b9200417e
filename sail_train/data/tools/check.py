"""`sail-train data check`: reads every sample of some shards the way training would, and says what is wrong.

Structure, conversation, images down to the last pixel, videos' frames, repetitions, and with a processor lengths in
tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from sail_train.config import to_mapping
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.measure import check_capacity, check_headers, parsers
from sail_train.data.shards import ShardFile, expand
from sail_train.data.tools.processors import open_processor
from sail_train.processor.images import open_image
from sail_train.processor.visuals import measure_video, pixels
from sail_train.types import BadSample, Conversation
from sail_train.visual import ImageSpec, VideoSpec

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

EXAMPLES = 3
"""Bad samples of each reason that are named."""


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
    repeated_keys: int = 0
    """Keys that an earlier shard has too: allowed, but nothing then tells the samples apart."""
    repeated_contents: int = 0
    """Samples whose text, images and videos an earlier one has too."""
    lengths: dict[str, list[float]] = field(default_factory=dict)
    """Minimum, median, 95th percentile and maximum of tokens, trained tokens and patches a sample."""

    def is_good(self, *, strict: bool) -> bool:
        """No bad sample and at least one good; with `strict`, no repetition either."""
        return not self.bad and self.samples > 0 and not (strict and (self.repeated_keys or self.repeated_contents))


def check_shards(
    patterns: list[str],
    *,
    sample_format: str = "messages",
    processor: SailVLProcessor | None = None,
    seq_length: int = sys.maxsize,
    max_patches: int = sys.maxsize,
) -> CheckReport:
    """Reads all samples; with a processor measures them against the two limits.

    Raises:
        ValueError: patterns that name no shards, or an unknown format.
    """
    checker = _Checker(
        DataConfig(
            sources={"check": SourceConfig(shards=patterns, format=sample_format)},
            seq_length=seq_length,
            max_patches=max_patches,
        ),
        processor,
    )
    for path in expand("check", patterns):
        checker.shard(path)
    return checker.finish()


class _Checker:
    def __init__(self, config: DataConfig, processor: SailVLProcessor | None) -> None:
        self._config = config
        self._processor = processor
        self._parse = parsers(config.sources)["check"]
        self._report = CheckReport()
        self._keys: set[str] = set()
        self._contents: set[bytes] = set()
        self._measured: dict[str, list[int]] = {"tokens": [], "trained tokens": [], "patches": []}

    def shard(self, path: str) -> None:
        self._report.shards += 1
        keys = set()
        for key, sample in self._samples(path):
            keys.add(key)
            self._report.repeated_keys += key in self._keys
            if isinstance(sample, BadSample):
                self._report.bad[sample.reason] += 1
                examples = self._report.examples.setdefault(sample.reason, [])
                if len(examples) < EXAMPLES:
                    examples.append(f"{path} {key!r}: {sample.detail}")
                continue
            self._good(sample)
        self._keys |= keys

    def finish(self) -> CheckReport:
        for name, values in self._measured.items():
            if values:
                self._report.lengths[name] = [float(value) for value in np.percentile(values, (0, 50, 95, 100))]
        return self._report

    def _samples(self, path: str) -> Iterator[tuple[str, Conversation | BadSample]]:
        file = ShardFile(path, source="check")
        index = file.index()
        for place in range(len(index)):
            key = index.bad[place][0] if place in index.bad else ""
            try:
                raw = file.sample(index, place)
                key = raw.key
                conversation = self._parse(raw)
                self._measure(conversation)
                self._decode(conversation)
                yield key, conversation
            except BadSample as error:
                yield key, error
        file.close()

    def _decode(self, conversation: Conversation) -> None:
        """Images to their last pixel; of videos the frames that the model, or else a usual one, looks at."""
        for image in conversation.images:
            open_image(image)
        image_spec = self._processor.image_spec if self._processor else ImageSpec()
        video_spec = self._processor.video_spec if self._processor else VideoSpec()
        for video in conversation.videos:
            pixels(measure_video(video, image_spec, video_spec, fps=conversation.fps), image_spec)

    def _measure(self, conversation: Conversation) -> None:
        check_headers(conversation)
        if self._processor is None:
            return
        encoded = self._processor.encode(conversation)
        check_capacity(encoded.num_tokens, encoded.num_patches, self._config)
        values = (encoded.num_tokens, encoded.num_trained, encoded.num_patches)
        for name, value in zip(self._measured, values, strict=True):
            self._measured[name].append(value)

    def _good(self, conversation: Conversation) -> None:
        self._report.samples += 1
        self._report.images += len(conversation.images)
        self._report.videos += len(conversation.videos)
        self._report.modes[conversation.mode or "none"] += 1
        content = hashlib.blake2b(repr(conversation.messages).encode(), digest_size=16)
        for file in (*conversation.images, *conversation.videos):
            content.update(hashlib.blake2b(file, digest_size=16).digest())
        self._report.repeated_contents += content.digest() in self._contents
        self._contents.add(content.digest())


def run(argv: list[str]) -> int:
    """The command; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(
        prog="sail-train data check",
        description="Read every sample of some shards, decode its images and videos, and report what training would "
        "refuse.",
        epilog="example: sail-train data check 'data/llava/*.tar' --processor runs/tiny/align --seq-length 1024",
    )
    parser.add_argument("shards", nargs="+", help="paths, globs or brace patterns of .tar files")
    parser.add_argument("--format", default="messages", help="how samples are read: messages (default) or caption")
    parser.add_argument("--processor", type=Path, help="model, run or tokenizer folder: measures samples in tokens")
    parser.add_argument("--seq-length", type=int, default=sys.maxsize, help="longer samples are bad")
    parser.add_argument("--max-patches", type=int, default=sys.maxsize, help="samples with more patches are bad")
    parser.add_argument("--strict", action="store_true", help="repeated keys or contents fail the check too")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(argv)
    try:
        report = check_shards(
            args.shards,
            sample_format=args.format,
            processor=open_processor(args.processor) if args.processor else None,
            seq_length=args.seq_length,
            max_patches=args.max_patches,
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
    if report.repeated_keys or report.repeated_contents:
        console.print(
            f"{report.repeated_keys} keys and {report.repeated_contents} whole samples are repeated", style="yellow"
        )
    if report.lengths:
        table = Table("a sample's", "min", "median", "95%", "max")
        for name, values in report.lengths.items():
            table.add_row(name, *(f"{value:.0f}" for value in values))
        console.print(table)
