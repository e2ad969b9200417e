"""`sail-train data inspect`: samples of some shards as the model will see them.

On the terminal every token of the first ones and which are trained on; as an HTML page also pictures with the grid of
their tokens, tiles or frames, which samples share a row, and histograms of length, resolution and modelled cost.
The samples are strangers' text: all of it is escaped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.measure import parsers
from sail_train.data.quarantine import TooManyBadSamples
from sail_train.data.tools.jobs import check_file
from sail_train.data.tools.page import Page, render
from sail_train.data.tools.processors import open_processor
from sail_train.data.tools.seen import SeenSample, seen, seen_samples
from sail_train.data.tools.survey import first, in_turn, named_sources, packed_rows, shape_of, survey

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

__all__ = ["make_page", "run", "seen_samples", "show"]


def make_page(
    sources: dict[str, list[str]], processor: SailVLProcessor, config: SourceConfig, args: argparse.Namespace
) -> Page:
    """All that the page shows: the first samples of each source in turn, measures of more of them, and rows."""
    names = sorted(sources)
    ordered = {name: sources[name] for name in names}
    samples = _first_samples(ordered, processor, config, args.limit)
    shape = shape_of(args.processor, processor.vocab_size)
    measured = survey(iter(first(args.measure, in_turn(ordered, processor, config))), shape)
    rows, note = [], ""
    if args.rows and measured.samples:
        try:
            rows = packed_rows(
                ordered, processor, config, rows=args.rows, seq_length=args.seq_length, max_patches=args.max_patches
            )
        except (ValueError, TooManyBadSamples) as error:
            note = f"no rows: {error}"
    return Page(
        samples=samples,
        sources=names,
        survey=measured,
        rows=rows,
        seq_length=args.seq_length,
        max_patches=args.max_patches,
        note=note,
        facts={"processor": str(args.processor), **{name: ", ".join(each) for name, each in ordered.items()}},
    )


def _first_samples(
    sources: dict[str, list[str]], processor: SailVLProcessor, config: SourceConfig, limit: int
) -> list[SeenSample]:
    found = first(limit, in_turn(sources, processor, config))
    return [seen(read, processor, name if len(sources) > 1 else "") for name, read in found]


def show(sample: SeenSample, console: Console) -> None:
    """Prints one sample: trained tokens in reverse."""
    console.print(f"{sample.key}  {sample.shard}", style="bold", markup=False)
    if sample.problem:
        console.print(sample.problem, style="red", markup=False)
        return
    console.print(sample.facts, style="dim", markup=False)
    for visual in sample.visuals:
        console.print(visual.caption, style="dim")
    line = Text()
    for token in sample.tokens:
        content = token.text if token.count == 1 else f"{token.text}x{token.count}"
        line.append(_printable(content), style="reverse" if token.trained else "")
    console.print(line)


def _printable(content: str) -> str:
    """Without what a terminal would obey."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in content
    )


def run(argv: list[str]) -> int:
    """The command; 1 if one of the samples shown is bad."""
    parser = _parser()
    args = parser.parse_args(argv)
    console = Console(soft_wrap=True, highlight=False)
    try:
        check_file("--html", args.html)
        config = SourceConfig(format=args.format, max_tiles=args.max_tiles, fps=args.fps)
        DataConfig(seq_length=args.seq_length, max_patches=args.max_patches)
        parsers({"inspect": config})
        sources = named_sources(args.shards)
        processor = open_processor(args.processor)
        if args.html is None:
            samples = _first_samples(sources, processor, config, args.limit)
        else:
            page = make_page(sources, processor, config, args)
            samples = list(page.samples)
    except ValueError as error:
        parser.error(str(error))
    if args.html is not None:
        args.html.write_text(render(page), encoding="utf-8")
        console.print(f"{len(samples)} samples in {args.html}", markup=False)
    else:
        _show_all(samples, console)
    return 1 if any(sample.problem for sample in samples) else 0


def _show_all(samples: list[SeenSample], console: Console) -> None:
    for sample in samples:
        show(sample, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sail-train data inspect",
        description="Show samples of some shards as the model will see them: images, tokens, loss mask, packed rows.",
        epilog="example: sail-train data inspect read='data/tiny/train/read/*.tar' "
        "chart='data/tiny/train/chart/*.tar' --processor data/tiny/tokenizer --limit 8 --html samples.html",
    )
    parser.add_argument("shards", nargs="+", help="paths, globs or brace patterns of .tar files; NAME=PATTERN names "
                        "a source, several are shown in turn")  # fmt: skip
    parser.add_argument("--processor", type=Path, required=True, help="model, run or tokenizer folder")
    parser.add_argument("--format", default="messages", help="how samples are read: messages (default) or caption")
    parser.add_argument("--max-tiles", type=int, help="most tiles of one image, as data.sources.NAME.max_tiles sets it")
    parser.add_argument("--fps", type=float, help="frames a second of videos, as data.sources.NAME.fps sets it")
    parser.add_argument("--limit", type=int, default=4, help="samples shown (default 4)")
    parser.add_argument("--html", type=Path, help="write a page instead of printing")
    parser.add_argument("--measure", type=int, default=1000, help="page: samples in the histograms (default 1000)")
    parser.add_argument("--rows", type=int, default=8, help="page: packed rows shown (default 8; 0: none)")
    parser.add_argument("--seq-length", type=int, default=4096, help="page: tokens of a packed row (default 4096)")
    parser.add_argument("--max-patches", type=int, default=16384, help="page: patches of a row (default 16384)")
    return parser
