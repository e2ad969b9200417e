"""`sail-train data dedupe`: finds samples that are there twice, and those that evaluation sets hold.

signatures of every shard (in parallel, or as parts of an array with --sign-only) -> pairs by shared keys -> which
sample repeats which -> the columns `duplicate_of` ("SHARD#ROW" of the copy that stays, the first in the order in which
the shards were named; empty: none) and, with --against, `contaminated`. Nothing is deleted: `data filter --where
"duplicate_of == ''"` or a source's `filter` leaves duplicates out. `duplicate_of` remembers what was called a copy: to
replace it by what another `--by` or distance finds has to be asked for (`--reset`). `contaminated` keeps every set's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sail_train.data.index import add_columns, column_origin, ensure_index, read_index
from sail_train.data.tools import jobs
from sail_train.data.tools.contamination import gather, mark_shard, parse_against
from sail_train.data.tools.duplicates import ROWS, find_pairs, resolve
from sail_train.data.tools.near import BY, NearOptions
from sail_train.data.tools.signature_files import Signatures, lay_out, sign_shard

COLUMN = "duplicate_of"


def check_earlier(shard: str, options: NearOptions) -> Mapping[str, Any]:
    """ValueError if a shard's duplicates were found by another rule: asked before the work is done."""
    table = read_index(shard)
    found_by = "" if table is None else column_origin(table, COLUMN)
    if found_by not in ("", options.described):
        raise ValueError(
            f"{COLUMN} was found with `{found_by}`, this is `{options.described}`; --reset replaces what was found"
        )
    return {}


def write_shard(shard: str, work: str, options: NearOptions) -> Mapping[str, Any]:
    """Writes the column `duplicate_of` of one shard."""
    import pyarrow

    shards: list[str] = json.loads((Path(work) / "shards.json").read_text())
    signatures = Signatures(Path(work) / "all")
    number = shards.index(shard)
    start, end = signatures.starts[number : number + 2].tolist()
    targets = np.load(Path(work) / "targets.npy", mmap_mode="r", allow_pickle=False)[start:end]
    table = ensure_index(shard)
    if len(table) != end - start:
        raise ValueError(f"{shard} changed since its signatures were made; run the command again")
    good, values = signatures["good"][start:end], []
    counts: dict[str, Any] = {
        "samples": end - start,
        "duplicates": int((targets >= 0).sum()),
        "duplicates by source": {},
    }
    for target, is_good in zip(targets.tolist(), good.tolist(), strict=True):
        if target < 0:
            values.append("" if is_good else None)
            continue
        origin = int(np.searchsorted(signatures.starts, target, "right")) - 1
        values.append(f"{shards[origin]}#{target - int(signatures.starts[origin])}")
        jobs.merge(counts["duplicates by source"], {_relation(shard, shards[origin]): 1})
    if COLUMN in table.column_names:
        counts["duplicates before, replaced"] = sum(map(bool, table.column(COLUMN).to_pylist()))
    add_columns(shard, {COLUMN: pyarrow.array(values, pyarrow.string())}, origin=options.described)
    return counts


def _relation(shard: str, origin: str) -> str:
    """A source is a folder."""
    mine, theirs = (Path(path).parent for path in (shard, origin))
    return f"within {mine}" if mine == theirs else f"{mine} repeats {theirs}"


def run(argv: list[str]) -> int:
    """The command; 1 if a shard failed."""
    args = _parser().parse_args(argv)
    options = NearOptions(by=args.by, exact=args.exact, distance=args.distance, similarity=args.similarity)
    if args.rows < 1:
        raise ValueError(f"--rows {args.rows} must be at least 1")
    part = jobs.parse_part(args.part)
    if part != (0, 1) and not args.sign_only:
        raise ValueError("--part is for --sign-only: pairs are found over all shards at once, in --jobs processes")
    paths = jobs.shards_of(args.shards)
    against = [parse_against(text) for text in args.against]
    work = str(args.work or Path(paths[0]).parent / ".dedupe")
    jobs.check_folder("--work", Path(work))
    if not args.sign_only:
        jobs.check_beside(paths)
    if not (args.no_duplicates or args.reset or args.sign_only):
        earlier = jobs.over_shards(paths, check_earlier, (options,), title="looking")
        if earlier.failed:
            return jobs.show(earlier, as_json=args.json, title="not deduplicated")
    signing = jobs.over_shards(paths, sign_shard, (work, args.format), jobs=args.jobs, part=part, title="signing")
    if args.sign_only or signing.failed:
        return jobs.show(signing, as_json=args.json, title="signed")
    extra: dict[str, Any] = {"signed": signing.counts}
    summary = jobs.Summary(shards=len(paths))
    if not args.no_duplicates:
        extra["pairs"] = _group(paths, work, options, args)
        summary = jobs.over_shards(paths, write_shard, (work, options), jobs=args.jobs, title="writing")
    if against and not summary.failed:
        known = Path(work) / "against.npz"
        extra["evaluation samples"] = gather(against, known, args.format)
        marking = (work, str(known), args.format, options.distance)
        marked = jobs.over_shards(paths, mark_shard, marking, jobs=args.jobs, title="decontaminating")
        marked.counts.pop("samples", None)
        summary.add(marked.counts)
        summary.failed |= marked.failed
    if not args.json:
        summary.counts |= extra
    return jobs.show(summary, as_json=args.json, title="deduplicated", extra=extra)


def _group(paths: list[str], work: str, options: NearOptions, args: argparse.Namespace) -> dict[str, Any]:
    """Pairs over all shards, and what each sample repeats; their counts."""
    signatures = lay_out(paths, work, "all")
    (Path(work) / "shards.json").write_text(json.dumps(paths))
    numbers = [str(number) for number in range(options.num_keys)]
    arguments = (str(Path(work) / "all"), work, options, args.rows)
    found = jobs.over_shards(numbers, find_pairs, arguments, jobs=args.jobs, title="comparing")
    if found.failed:
        raise ValueError(f"keys {', '.join(found.failed)} failed: {next(iter(found.failed.values()))}")
    resolve(work, options.num_keys, len(signatures), args.rows)
    return found.counts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sail-train data dedupe",
        description="Find samples that are there twice, exactly or nearly, and samples of evaluation sets. Writes the "
        "index columns duplicate_of and contaminated; by: " + "; ".join(f"{name}: {text}" for name, text in BY.items()),
        epilog="example: sail-train data dedupe 'data/good/*.tar' 'data/web/*.tar' --against mmmu='eval/mmmu/*.tar' "
        "--jobs 8; then data filter ... --where \"duplicate_of == ''\" --where \"contaminated == ''\"",
    )
    jobs.add_arguments(parser)
    parser.add_argument("--by", default="sample", help=f"{', '.join(BY)} (default sample)")
    parser.add_argument("--exact", action="store_true", help="only the same decoded pixels and the same words")
    parser.add_argument("--distance", type=int, default=4, help="bits of 64 that image hashes may differ in (4)")
    parser.add_argument("--similarity", type=float, default=0.8, help="least similarity of near texts (0.8)")
    parser.add_argument("--against", action="append", default=[], metavar="NAME=SHARDS", help="an evaluation set")
    parser.add_argument("--no-duplicates", action="store_true", help="only look for evaluation samples")
    parser.add_argument("--reset", action="store_true", help="replace duplicates that another rule found")
    parser.add_argument("--work", type=Path, help="folder for signatures (default: .dedupe beside the first shard)")
    parser.add_argument("--sign-only", action="store_true", help="only the first pass, as part of an array")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"records in memory at a time (default {ROWS})")
    parser.add_argument("--format", default="messages", help="how samples are read: messages (default) or caption")
    return parser
