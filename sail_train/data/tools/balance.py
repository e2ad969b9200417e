"""`sail-train data balance`: how often samples and sources should be seen.

    ratios   target shares of a mixture -> `weight` of each source, printed as YAML
    ngrams   rare wording more often, common wording less: `weight` in the index (`balance_ngrams`)
    tail     samples of rare domains more often: `weight` in the index (`balance_tail`)

The stream shows a sample of weight w floor(w) times an epoch, and once more with probability w - floor(w). Both ways of
weighing start from 1 and leave a 0, which a filter wrote, at 0: a second run gives the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from sail_train.config import suggestion
from sail_train.data.index import read_index
from sail_train.data.tools import balance_ngrams, balance_tail, jobs
from sail_train.data.tools.filter import weights_of
from sail_train.data.tools.weights import Chart, as_html, as_text, ratios

TOKENS = "num_tokens"


def measure_source(shard: str, by_tokens: bool) -> Mapping[str, Any]:
    """Samples and tokens of a shard, by their weights."""
    table = read_index(shard)
    if table is None or (by_tokens and TOKENS not in table.column_names):
        raise ValueError("has no num_tokens in its index; run `sail-train data filter --measure --processor FOLDER`")
    weights = weights_of(table)
    counts: dict[str, Any] = {"samples": float(weights.sum())}
    if by_tokens:
        tokens = np.array([value or 0 for value in table.column(TOKENS).to_pylist()], dtype=np.float64)
        counts["samples"] = float(weights[tokens > 0].sum())
        counts["tokens"] = float((weights * tokens).sum())
    return counts


def _named(texts: Sequence[str], option: str) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in texts)
    if wrong := [text for text in texts if "=" not in text]:
        raise ValueError(f"{option} {wrong[0]!r} should be NAME=VALUE")
    return pairs


def run_ratios(args: argparse.Namespace) -> int:
    sources, targets = _named(args.source, "--source"), _named(args.target, "--target")
    for name in targets:
        if name not in sources:
            raise ValueError(f"--target {name}: no such --source; {suggestion(name, sources)}")
    if missing := [name for name in sources if name not in targets]:
        raise ValueError(f"--source {missing[0]} has no --target {missing[0]}=SHARE")
    found: dict[str, dict[str, Any]] = {}
    for name, pattern in sources.items():
        paths = jobs.shards_of([pattern])
        summary = jobs.over_shards(paths, measure_source, (args.by == "tokens",), jobs=args.jobs, title=name)
        if summary.failed:
            path, reason = next(iter(summary.failed.items()))
            raise ValueError(f"source {name}: {path}: {reason}")
        found[name] = summary.counts
    lengths = {
        name: counts["tokens"] / counts["samples"] if args.by == "tokens" and counts["samples"] else 1.0
        for name, counts in found.items()
    }
    shares = {name: _share(name, text) for name, text in targets.items()}
    weights = ratios(shares, lengths)
    total = sum(shares.values())
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if args.json:
        console.print(json.dumps({"weights": weights, "sources": found, "tokens_per_sample": lengths}))
        return 0
    console.print(f"data:\n  sources:   # weights for shares of {args.by}")
    for name, weight in weights.items():
        # what a whole pass over the mixture's samples makes of this source, to see what is repeated
        passes = weight * sum(counts["samples"] for counts in found.values()) / max(found[name]["samples"], 1e-9)
        note = (
            f"{shares[name] / total:.1%} of {args.by}, {lengths[name]:.1f} {args.by} a sample, seen {passes:.2f} times"
        )
        console.print(f"    {json.dumps(name)}: {{weight: {weight:.6g}}}   # {note} while all samples are drawn once")
    return 0


def _share(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--target {name}={text!r} is no number") from None


def run_ngrams(args: argparse.Namespace) -> int:
    jobs.check_file("--html", args.html)
    paths = jobs.shards_of(args.shards)
    work = str(args.work or Path(paths[0]).parent / ".balance")
    jobs.check_folder("--work", Path(work))
    jobs.check_beside(paths)
    summary, shown = balance_ngrams.balance(
        paths, work, size=args.size, power=args.power, least=args.least, most=args.most, num_jobs=args.jobs,
        sample_format=args.format,
    )  # fmt: skip
    return _show(summary, shown, args)


def run_tail(args: argparse.Namespace) -> int:
    jobs.check_file("--html", args.html)
    paths = jobs.shards_of(args.shards)
    jobs.check_beside(paths)
    summary, shown = balance_tail.balance(
        paths, args.domain, floor=args.floor, most=args.most, num_jobs=args.jobs,
        sample_format=args.format,
    )  # fmt: skip
    return _show(summary, shown, args)


def _show(summary: jobs.Summary, shown: Chart, args: argparse.Namespace) -> int:
    histogram = {"labels": shown.labels, "before": shown.before, "after": shown.after}
    code = jobs.show(summary, as_json=args.json, title="balanced", extra={"histogram": histogram})
    if not args.json:
        Console(soft_wrap=True, highlight=False, markup=False).print(as_text(shown))
    if args.html is not None:
        args.html.write_text(as_html(shown), encoding="utf-8")
    return code


def run(argv: list[str]) -> int:
    """The command; 1 if a shard failed."""
    args = _parser().parse_args(argv)
    return int(args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sail-train data balance",
        description="Say how often sources and samples should be seen.",
        epilog="example: sail-train data balance tail 'data/web/*.tar' --domain meta.topic --html tail.html",
    )
    kinds = parser.add_subparsers(required=True, metavar="ratios|ngrams|tail")
    kind = kinds.add_parser("ratios", help="weights of sources for target shares of tokens or samples")
    jobs.add_arguments(kind, shards=False)
    kind.add_argument("--source", action="append", required=True, default=[], metavar="NAME=SHARDS")
    kind.add_argument("--target", action="append", required=True, default=[], metavar="NAME=SHARE")
    kind.add_argument("--by", default="tokens", choices=["tokens", "samples"], help="what shares are of (tokens)")
    kind.set_defaults(run=run_ratios)
    kind = kinds.add_parser("ngrams", help="rare wording more often, common wording less")
    kind.add_argument("--size", type=int, default=2, help="words of an n-gram (default 2)")
    kind.add_argument("--power", type=float, default=0.5, help="weight = mean of frequency^-power (default 0.5)")
    kind.add_argument("--least", type=float, default=0.1, help="smallest weight (default 0.1)")
    kind.add_argument("--most", type=float, default=5.0, help="largest weight (default 5)")
    kind.add_argument("--work", type=Path, help="folder for counts (default: .balance beside the first shard)")
    kind.set_defaults(run=run_ngrams)
    _add_common(kind)
    kind = kinds.add_parser("tail", help="samples of rare domains more often")
    kind.add_argument("--domain", required=True, help="an index column, or meta.FIELD")
    kind.add_argument("--floor", type=float, default=0.5, help="of the mean domain, up to which rare ones go (0.5)")
    kind.add_argument("--most", type=float, default=0.0, help="largest weight; 0 (default): 1000, what a stream takes")
    kind.set_defaults(run=run_tail)
    _add_common(kind)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Weighing compares all shards, so there is no --part."""
    parser.add_argument("shards", nargs="+", help="paths, globs or brace patterns of .tar files")
    parser.add_argument("--jobs", type=int, default=1, help="processes on this machine (default 1)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--html", type=Path, help="write the histogram as a page")
    parser.add_argument("--format", default="messages", help="how samples are read: messages (default) or caption")
