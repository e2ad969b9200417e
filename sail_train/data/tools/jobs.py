"""Work on many shards: in processes of one machine, as parts of a Slurm array, shard by shard.

paths -> this part's -> one call of a module-level function each, in fresh processes -> their counts, added up.
What a shard's work raises as ValueError or OSError fails that shard by name and no other. Nothing is kept here about
what is done: each tool skips a shard whose output exists and fits, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sail_train.config import to_mapping
from sail_train.data import remote
from sail_train.data.listing import expand

SKIPPED = "shards skipped"
"""Count that a shard's work returns as 1 where its output was there already."""
AHEAD = 4
"""Shards that wait for each process: enough to keep it busy, few enough for a hundred thousand shards."""
SHOWN = 5
"""Reasons for failed shards that are told on the terminal."""

Work = Callable[..., Mapping[str, Any]]
"""work(shard, *arguments) -> counts by name; a count may be a mapping of counts. A function of a module."""


@dataclass(kw_only=True)
class Summary:
    """What became of the shards."""

    shards: int = 0
    counts: dict[str, Any] = field(default_factory=dict)
    """Added up over the shards."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by shard."""

    def add(self, counts: Mapping[str, Any]) -> None:
        merge(self.counts, counts)


def merge(into: dict[str, Any], counts: Mapping[str, Any]) -> None:
    """Adds counts, and counts within counts."""
    for name, value in counts.items():
        if isinstance(value, Mapping):
            merge(into.setdefault(name, {}), value)
        else:
            into[name] = into.get(name, 0) + value


def parse_part(text: str) -> tuple[int, int]:
    """ "I/N" -> (I, N): part I, from 0, of N, as SLURM_ARRAY_TASK_ID counts with --array=0-(N-1)."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"--part {text!r} should be I/N with 0 <= I < N, as in $SLURM_ARRAY_TASK_ID/8")
    return int(number), int(count)


def over_shards(
    paths: Sequence[str],
    work: Work,
    arguments: Sequence[Any] = (),
    *,
    jobs: int = 1,
    part: tuple[int, int] = (0, 1),
    title: str = "shards",
) -> Summary:
    """Calls `work(shard, *arguments)` for this part of the shards; with one job in this process.

    Raises:
        ValueError: `jobs` below 1.
    """
    if jobs < 1:
        raise ValueError(f"--jobs {jobs} must be at least 1")
    mine = list(paths)[part[0] :: part[1]]
    summary = Summary(shards=len(mine))
    run = _in_this_process if jobs == 1 or len(mine) <= 1 else _in_processes
    with _progress() as progress:
        task = progress.add_task(title, total=len(mine))
        for path, outcome in run(mine, work, arguments, jobs):
            if isinstance(outcome, Exception):
                summary.failed[path] = f"{type(outcome).__name__}: {outcome}"
            else:
                summary.add(outcome)
            progress.advance(task)
    return summary


Outcomes = Iterator[tuple[str, Mapping[str, Any] | Exception]]


def _in_this_process(paths: Sequence[str], work: Work, arguments: Sequence[Any], jobs: int) -> Outcomes:
    for path in paths:
        try:
            yield path, work(path, *arguments)
        except (ValueError, OSError) as error:
            yield path, error


def _in_processes(paths: Sequence[str], work: Work, arguments: Sequence[Any], jobs: int) -> Outcomes:
    """Fresh processes: a fork would inherit the threads and locks of torch and of the progress bar."""
    waiting = iter(paths)
    running: dict[Future[Mapping[str, Any]], str] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(paths)), mp_context=context) as pool:
        try:
            while True:
                for path in itertools.islice(waiting, AHEAD * jobs - len(running)):
                    running[pool.submit(work, path, *arguments)] = path
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    path = running.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool) or not isinstance(error, ValueError | OSError | None):
                        raise error
                    yield path, future.result() if error is None else error
        except BrokenProcessPool as error:
            # killed, most often for memory: which shard it was is not known, so none of those begun is called done
            for unfinished in (*running.values(), path, *waiting):
                yield unfinished, OSError(f"a process was killed before this shard was done ({error}); run it again")
        finally:
            pool.shutdown(cancel_futures=True)


def _progress() -> Progress:
    """On a terminal only, and on stderr: stdout is the summary's."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


def add_arguments(parser: argparse.ArgumentParser, *, shards: bool = True) -> None:
    """The arguments that all tools on shards have."""
    if shards:
        parser.add_argument("shards", nargs="+", help="paths, globs or brace patterns of .tar files")
    parser.add_argument("--jobs", type=int, default=1, help="processes on this machine (default 1)")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="only part I (from 0) of N of the shards")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def shards_of(patterns: Sequence[str]) -> list[str]:
    """The shards that a command's arguments name; ValueError if they name none."""
    return list(expand("shards", list(patterns)))


def check_file(option: str, path: Path | None) -> None:
    """ValueError if a file could not be written there: said before the work, not after it."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}; make it, or name another place")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written to; name another place")


def check_folder(option: str, path: Path) -> None:
    """ValueError if nothing could be written into a folder that may have to be made first."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{option} {path}: {there} is no folder; name another place")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{option} {path}: nothing can be written in {there}; name another place")


def check_beside(shards: Sequence[str]) -> None:
    """ValueError if a folder of local shards, in which their indexes are to be written, takes none."""
    for folder in sorted({os.path.dirname(shard) or "." for shard in shards if not remote.is_remote(shard)}):
        if not os.access(folder, os.W_OK):
            raise ValueError(f"nothing can be written in {folder}, beside the shards; this tool writes their indexes")


def common_folder(paths: Sequence[str]) -> Path:
    """The deepest folder that holds all of them."""
    parents = [Path(path).resolve().parent for path in paths]
    folder = parents[0]
    while not all(parent.is_relative_to(folder) for parent in parents):
        folder = folder.parent
    return folder


def show(summary: Summary, *, as_json: bool, title: str, extra: Mapping[str, Any] | None = None) -> int:
    """Prints a summary; the exit code: 1 where a shard failed."""
    if as_json:
        # not rich's own: it would wrap and colour
        Console(soft_wrap=True, highlight=False, markup=False).print(
            json.dumps({**to_mapping(summary), **(extra or {})}, ensure_ascii=False)
        )
        return 1 if summary.failed else 0
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{title}: {summary.shards} shards")
    for line in lines(summary.counts):
        console.print(line)
    for line in failures(summary.failed):
        console.print(line, style="red")
    return 1 if summary.failed else 0


def failures(failed: Mapping[str, str]) -> Iterator[str]:
    """Failed shards as lines: what failed alike, as a mistyped condition does for every shard, is told once."""
    alike: dict[str, list[str]] = {}
    for path, reason in failed.items():
        alike.setdefault(reason, []).append(path)
    for reason, paths in itertools.islice(alike.items(), SHOWN):
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield f"failed: {paths[0]}{more}: {reason}"
    rest = sum(len(paths) for paths in list(alike.values())[SHOWN:])
    if rest:
        yield f"failed: {rest} more shards"


def lines(counts: Mapping[str, Any], indent: str = "  ") -> Iterator[str]:
    """Counts as indented lines, the largest of inner ones first."""
    for name, value in counts.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:"
            plain = all(isinstance(inner, int | float) for inner in value.values())
            ordered = dict(sorted(value.items(), key=lambda item: -item[1])) if plain else value
            yield from lines(ordered, indent + "  ")
        else:
            yield f"{indent}{name}: {value:g}" if isinstance(value, float) else f"{indent}{name}: {value}"
