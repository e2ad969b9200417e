"""`sail-train data scores-from`: pass rates of the sample loop -> the column `pass_rate` of the shards they are of.

A line of the loop's samples.jsonl names a prompt by its key, its question and its truth; keys alone may repeat from
shard to shard. Prompts that were asked several times get the mean over all their answers. A line that fits no sample
of the shards, or several, is counted and used for none; a sample without a line keeps what it had, or null.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sail_train.data.index import add_columns, ensure_index
from sail_train.data.tools import jobs
from sail_train.data.tools.reading import conversations
from sail_train.types import BadSample, Conversation

COLUMN = "pass_rate"
Identity = tuple[str, str, str | None]
"""Key, question and truth."""


def read_rates(path: Path, source: str | None) -> tuple[dict[Identity, float], Counter[str]]:
    """(mean pass rate by prompt, what became of the lines).

    Raises:
        ValueError: a file that is missing, a whole line that is none of the sample loop's, or no line of the source.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; it is samples.jsonl of a run of the sample loop")
    sums: dict[Identity, list[float]] = {}
    others: set[str] = set()
    counts: Counter[str] = Counter()
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                counts["cut off"] += 1
                continue
            record = _record(line, f"{path}, line {number}")
            if source is not None and record["source"] != source:
                others.add(record["source"])
                counts["of other sources"] += 1
                continue
            if record[COLUMN] is None:
                counts["not graded"] += 1
                continue
            counts["used"] += 1
            answers = len(record["responses"])
            rate = sums.setdefault((record["key"], record["prompt"], record["truth"]), [0.0, 0.0])
            rate[0], rate[1] = rate[0] + record[COLUMN] * answers, rate[1] + answers
    if others and not counts["used"] + counts["not graded"]:
        raise ValueError(f"--source {source!r}: {path} has none of it; its sources are {', '.join(sorted(others))}")
    return {identity: passed / answers for identity, (passed, answers) in sums.items()}, counts


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        rate = record[COLUMN]
        texts = (record["source"], record["key"], record["prompt"], record["truth"] or "")
        whole = all(isinstance(text, str) for text in texts) and bool(record["responses"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is none of the sample loop's: {type(error).__name__} {error}") from None
    known = isinstance(rate, int | float) and math.isfinite(rate) and 0 <= rate <= 1
    if not whole or not (known or rate is None):
        raise ValueError(f"{where} is none of the sample loop's: a pass rate is a share from 0 to 1 of some responses")
    found: dict[str, Any] = record
    return found


def identity_of(sample: Conversation) -> Identity:
    """As the sample loop writes it down."""
    return sample.key, sample.prompt[-1].text if sample.prompt else "", sample.answer


def count_shard(shard: str, known: frozenset[Identity], sample_format: str) -> Mapping[str, Any]:
    """How often each known prompt is in a shard, by its JSON."""
    found: Counter[str] = Counter()
    for sample in conversations(shard, sample_format):
        if not isinstance(sample, BadSample) and (identity := identity_of(sample)) in known:
            found[json.dumps(identity)] += 1
    return {"found": dict(found)}


def write_shard(shard: str, rates: Mapping[Identity, float], sample_format: str) -> Mapping[str, Any]:
    """Writes the column of one shard."""
    import pyarrow

    table = ensure_index(shard)
    values = table.column(COLUMN).to_pylist() if COLUMN in table.column_names else [None] * len(table)
    written: list[float] = []
    for place, sample in enumerate(conversations(shard, sample_format)):
        if not isinstance(sample, BadSample) and (identity := identity_of(sample)) in rates:
            values[place] = rates[identity]
            written.append(rates[identity])
    # also where there is none: a condition on a column that a shard lacks is an error
    add_columns(shard, {COLUMN: pyarrow.array(values, pyarrow.float64())})
    return {"samples": len(values), "written": len(written), "pass rates": Counter(map(_band, written))}


def _band(rate: float) -> str:
    if rate in (0, 1):
        return f"{rate:.0f}"
    low = min(math.ceil(rate * 4) - 1, 3) / 4
    return f"{low:g} < p <= {low + 0.25:g}" if low < 0.75 else "0.75 < p < 1"


def run(argv: list[str]) -> int:
    """The command; 1 if a shard failed."""
    args = _parser().parse_args(argv)
    rates, lines = read_rates(args.samples, args.source)
    paths = jobs.shards_of(args.shards)
    jobs.check_beside(paths)
    found = jobs.over_shards(paths, count_shard, (frozenset(rates), args.format), jobs=args.jobs, title="finding")
    places: dict[str, int] = found.counts.get("found", {})
    if not places and not found.failed:
        raise ValueError(
            f"none of the {len(rates)} prompts of {args.samples} is in {len(paths)} shards; name those sampled"
        )
    unique = {identity: rate for identity, rate in rates.items() if places.get(json.dumps(identity), 0) == 1}
    several = sum(count > 1 for count in places.values())
    summary = found
    if not found.failed:
        summary = jobs.over_shards(paths, write_shard, (unique, args.format), jobs=args.jobs, title="writing")
        summary.counts |= {"prompts not found": len(rates) - len(places), "prompts found several times": several}
    else:
        summary.counts.pop("found", None)
    summary.counts["lines"] = dict(lines)
    return jobs.show(summary, as_json=args.json, title="pass rates")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sail-train data scores-from",
        description="Write the pass rates that the sample loop found into the index of the shards it sampled from.",
        epilog="example: sail-train data scores-from runs/mine/harvest/samples.jsonl 'data/rl/*.tar'; then filter by "
        "'pass_rate > 0' and 'pass_rate <= 0.75'",
    )
    parser.add_argument("samples", type=Path, help="samples.jsonl of a run of the sample loop")
    parser.add_argument("shards", nargs="+", help="paths, globs or brace patterns of .tar files")
    parser.add_argument("--source", help="only lines of this source of the run's mixture")
    parser.add_argument("--jobs", type=int, default=1, help="processes on this machine (default 1)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--format", default="messages", help="how samples are read: messages (default) or caption")
    return parser
