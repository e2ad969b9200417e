"""`sail-train data score`: a judge says how rich and how well aligned each sample is; the index remembers.

shards -> the cases not yet judged -> verdicts, batch by batch into a partial file -> columns of the index, which say
which judge gave them. A shard whose columns are complete is skipped; one that was begun goes on where its partial file
ends. Failures are counted by reason and stay null; `--retry` asks for those again. What another judge said, or one that
was told other words or asked with other settings, is not added to: `--redo` replaces it, and goes on only where a
`--redo` ended. A sample without an image is not judged.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_train.config import choice
from sail_train.data.index import add_columns, column_origin, ensure_index
from sail_train.data.tools import jobs
from sail_train.data.tools.judgements import QUESTIONS, good, prompt_version
from sail_train.data.tools.reading import conversations
from sail_train.data.tools.score_judges import Case, JudgeOptions, Verdict, open_judge
from sail_train.types import BadSample

log = logging.getLogger(__name__)

PATIENCE = 20
"""Cases asked before a share of failures says anything."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What is asked, of whom, and what is put up with."""

    judge: JudgeOptions
    columns: tuple[str, ...] = tuple(QUESTIONS)
    """Names in `QUESTIONS`."""
    sample_format: str = "messages"
    max_fail_rate: float = 0.1
    """Share of failed verdicts above which a shard is given up; what succeeded is kept for the next try."""
    max_requests: int = 0
    """Cases that one process may ask for; 0: no limit."""
    retry: bool = False
    """Ask again for verdicts that failed."""
    redo: bool = False
    """Ask for everything again, whatever was known."""

    @property
    def origin(self) -> dict[str, str]:
        """What the columns say they were made by."""
        settings = {"settings": self.judge.settings} if self.judge.settings else {}
        return {"judge": self.judge.name, "prompts": prompt_version(), **settings}

    def __post_init__(self) -> None:
        for column in self.columns:
            choice("--columns", column, QUESTIONS)
        if not 0 <= self.max_fail_rate <= 1:
            raise ValueError(f"--max-fail-rate {self.max_fail_rate} must be a share from 0 to 1")
        if self.max_requests < 0:
            raise ValueError(f"--max-requests {self.max_requests} must be 0 (no limit) or more")


class Partial:
    """The verdicts of a shard that is being judged, in a file beside it that survives the process."""

    def __init__(self, shard: str, options: ScoreOptions) -> None:
        self.path = Path(f"{shard.removesuffix('.tar')}.score.partial.jsonl")
        self._redo = options.redo
        self._head = {"shard_bytes": os.path.getsize(shard), **options.origin, **({"redo": True} if self._redo else {})}

    def read(self) -> dict[tuple[int, str], int]:
        """What was judged before, by the same judge in the same words; else nothing, and the file starts anew.

        What was not begun by a redo is nothing to a redo: it may be what is to be replaced.

        Raises:
            ValueError: a redo began it, and this is none: its verdicts do not mix with those that it was to replace.
        """
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        # a last line without its end is one that was being written
        whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
        if whole and not self._redo and whole[0] == {**self._head, "redo": True}:
            raise ValueError(f"{self.path} is of a --redo that was cut off: give --redo again, or remove the file")
        if not whole or whole[0] != self._head:
            whole = [self._head]
        self._write(whole)
        return {(line["place"], line["column"]): line["value"] for line in whole[1:]}

    def close(self, columns: tuple[str, ...]) -> None:
        """Takes out what the index has now; the file stays while it has verdicts of other columns, for their run."""
        head, *lines = map(json.loads, self.path.read_bytes().splitlines())
        if others := [line for line in lines if line["column"] not in columns]:
            self._write([head, *others])
        else:
            self.path.unlink()

    def _write(self, lines: list[dict[str, Any]]) -> None:
        aside = self.path.with_name(f"{self.path.name}.tmp")
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.replace(aside, self.path)

    def append(self, verdicts: Mapping[tuple[int, str], int]) -> None:
        with open(self.path, "a") as file:
            for (place, column), value in verdicts.items():
                file.write(json.dumps({"place": place, "column": column, "value": value}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def score_shard(shard: str, options: ScoreOptions) -> Mapping[str, Any]:
    """Judges what is not judged and writes the columns: the work of one shard.

    Raises:
        ValueError: another judge's verdicts are there; too many verdicts failed, or the budget is used up: then the
            partial file keeps what there is.
    """
    table, partial = ensure_index(shard), Partial(shard, options)
    mine = (
        options.columns if options.redo else tuple(name for name in options.columns if _is_mine(table, name, options))
    )
    known = {} if options.redo else _known(table, mine)
    complete = set(mine) == set(options.columns) <= set(table.column_names)
    if complete and not options.redo and not options.retry and not partial.path.exists():
        return {jobs.SKIPPED: 1}
    known |= {case: value for case, value in partial.read().items() if case[1] in options.columns}
    failures, asked, skipped = Counter[str](), 0, Counter[str]()
    for batch in _batches(_cases(shard, options, known, skipped), options.judge.batch):
        _charge(len(batch), options)
        verdicts = open_judge(options.judge).judge(batch)
        asked += len(batch)
        failures.update(verdict.failure for verdict in verdicts if verdict.value is None)
        _tell(shard, batch, verdicts)
        pairs = zip(batch, verdicts, strict=True)
        judged = {(case.place, case.column): verdict.value for case, verdict in pairs if verdict.value is not None}
        partial.append(judged)
        known |= judged
        if failures.total() > options.max_fail_rate * max(asked, PATIENCE):
            raise ValueError(
                f"{failures.total()} of {asked} verdicts failed ({_listed(failures)}), more than --max-fail-rate "
                f"{options.max_fail_rate:g}; what succeeded is kept: mend the judge and run it again"
            )
    _finish(shard, known, options, len(table))
    partial.close(options.columns)
    return _counts(known, options, asked, failures, skipped, len(table))


_told: set[str] = set()
"""Failures of which this process showed one."""


def _tell(shard: str, cases: list[Case], verdicts: list[Verdict]) -> None:
    """Logs the first failure of each kind in full: counts alone do not say what to mend."""
    for case, verdict in zip(cases, verdicts, strict=True):
        if verdict.value is None and verdict.failure not in _told:
            _told.add(verdict.failure)
            key = case.conversation.key
            log.warning("%s, %s of %r: %s: %s", shard, case.column, key, verdict.failure, verdict.detail or "no detail")


def _is_mine(table: Any, column: str, options: ScoreOptions) -> bool:
    """Whether the verdicts of a column, if there are any, are of this judge; False where it holds none.

    Raises:
        ValueError: they are another's.
    """
    if column not in table.column_names or table.column(column).null_count == len(table):
        return column_origin(table, column) == json.dumps(options.origin)
    origin = json.loads(column_origin(table, column) or '{"judge": "somebody who did not sign", "prompts": ""}')
    if origin != options.origin:
        how = ""
        if origin["judge"] == options.judge.name:
            words = origin["prompts"] != options.origin["prompts"]
            how = ", told other words than today" if words else ", with another --extra-body or --dtype"
        raise ValueError(
            f"{column} was judged by {origin['judge']!r}{how}, and this is {options.judge.name!r}; scores of two do "
            "not mix: --redo judges everything again"
        )
    return True


_asked_here = 0


def _charge(count: int, options: ScoreOptions) -> None:
    """Takes `count` cases from this process's budget."""
    global _asked_here
    if options.max_requests and _asked_here + count > options.max_requests:
        raise ValueError(f"--max-requests {options.max_requests} is used up; the same command goes on from here")
    _asked_here += count


def _known(table: Any, columns: tuple[str, ...]) -> dict[tuple[int, str], int]:
    """Verdicts that the index has."""
    return {
        (place, column): int(value)
        for column in columns
        if column in table.column_names
        for place, value in enumerate(table.column(column).to_pylist())
        if value is not None
    }


def _cases(
    shard: str, options: ScoreOptions, known: Mapping[tuple[int, str], int], skipped: Counter[str]
) -> Iterator[Case]:
    for place, sample in enumerate(conversations(shard, options.sample_format)):
        if isinstance(sample, BadSample):
            skipped[sample.reason] += 1
        elif not sample.images:
            skipped["no image"] += 1
        else:
            for column in options.columns:
                if (place, column) not in known:
                    yield Case(place=place, column=column, conversation=sample)


def _batches(cases: Iterator[Case], size: int) -> Iterator[list[Case]]:
    while batch := list(itertools.islice(cases, size)):
        yield batch


def _finish(shard: str, known: Mapping[tuple[int, str], int], options: ScoreOptions, rows: int) -> None:
    import pyarrow

    add_columns(
        shard,
        {
            column: pyarrow.array([known.get((place, column)) for place in range(rows)], pyarrow.int8())
            for column in options.columns
        },
        origin=json.dumps(options.origin),
    )


def _counts(
    known: Mapping[tuple[int, str], int],
    options: ScoreOptions,
    asked: int,
    failures: Counter[str],
    skipped: Counter[str],
    rows: int,
) -> dict[str, Any]:
    values: dict[str, dict[str, int]] = {column: {} for column in options.columns}
    poor: set[int] = set()
    for (place, column), value in sorted(known.items()):
        values[column][str(value)] = values[column].get(str(value), 0) + 1
        if not good(column, value):
            poor.add(place)
    counts = {"samples": rows, "asked": asked, "failed": failures.total(), "below the bar": len(poor), **values}
    return {**counts, "failed by": dict(failures), "not judged": dict(skipped)}


def _listed(failures: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in failures.most_common(3))


def run(argv: list[str]) -> int:
    """The command; 1 if a shard failed."""
    args = _parser().parse_args(argv)
    judge = JudgeOptions(
        endpoint=args.endpoint, model=args.model, api_key_env=args.api_key_env, timeout=args.timeout,
        max_retries=args.max_retries, concurrency=args.concurrency, batch=args.batch, dtype=args.dtype,
        extra_body=args.extra_body,
    )  # fmt: skip
    options = ScoreOptions(
        judge=judge, columns=tuple(args.columns.split(",")), sample_format=args.format,
        max_fail_rate=args.max_fail_rate, max_requests=args.max_requests, retry=args.retry, redo=args.redo,
    )  # fmt: skip
    paths, part = jobs.shards_of(args.shards), jobs.parse_part(args.part)
    jobs.check_beside(paths)
    open_judge(judge)  # a missing model or key is one mistake, not one a shard
    summary = jobs.over_shards(paths, score_shard, (options,), jobs=args.jobs, part=part, title="scoring")
    return jobs.show(summary, as_json=args.json, title="scored")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sail-train data score",
        description="Let a judge score samples: visual richness and image-text alignment, 1 to 5 and yes or no.",
        epilog="examples: sail-train data score 'data/caps/*.tar' --model runs/judge/sft; sail-train data score "
        "'data/caps/*.tar' --endpoint http://127.0.0.1:8000/v1 --model my-judge --concurrency 32; then sail-train "
        "data filter ... --where 'score_vir >= 3' --where 'yes_vir == 1'",
    )
    jobs.add_arguments(parser)
    parser.add_argument("--model", default="", help="run or model folder; with --endpoint the model's name there")
    parser.add_argument("--endpoint", default="", help="OpenAI-compatible base address, ending in /v1")
    parser.add_argument("--api-key-env", default="", help="name of the environment variable with the endpoint's key")
    extra = """fields for a request, as '{"chat_template_kwargs": {"enable_thinking": false}}'; null takes one away"""
    parser.add_argument("--extra-body", default="", metavar="JSON", help=extra)
    parser.add_argument("--columns", default=",".join(QUESTIONS), help=f"default: {','.join(QUESTIONS)}")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds a request may take (default 60)")
    parser.add_argument("--max-retries", type=int, default=3, help="further tries of a failed request (default 3)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight at once (default 8)")
    parser.add_argument("--batch", type=int, default=64, help="cases judged together (default 64)")
    parser.add_argument("--dtype", default="float32", help="of a model of ours: float32 (default) or bfloat16")
    parser.add_argument("--max-fail-rate", type=float, default=0.1, help="share of failures that ends a shard (0.1)")
    parser.add_argument("--max-requests", type=int, default=0, help="cases that each process may ask; 0: no limit")
    parser.add_argument("--retry", action="store_true", help="ask again for verdicts that failed")
    parser.add_argument("--redo", action="store_true", help="ask for all verdicts again, another judge's too")
    parser.add_argument("--format", default="messages", help="how samples are read: messages (default) or caption")
    return parser
