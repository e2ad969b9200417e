"""`sail-train data filter`: keeps the samples for which conditions on their index hold.

Into new shards of the same names, with the original bytes, keys and order, an index that carries all columns and a
dataset.json that carries the parent's fields and the conditions (`filter_folder`); or with `--in-index` by `weight` 0
in the index, which the stream honours, without copying a byte. `--measure` first writes what a sample measures (see
`measured`). Kept and dropped add up to read; a dropped sample is counted under the first condition that did not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sail_train.data.conditions import Condition, parse
from sail_train.data.index import (
    BAD,
    OWN_COLUMNS,
    SIZE_FIELD,
    add_columns,
    ensure_index,
    index_path,
    read_index,
    write_index,
)
from sail_train.data.shard_file import ShardFile
from sail_train.data.tar import BLOCK
from sail_train.data.tools import jobs
from sail_train.data.tools.filter_folder import claim, finish, folders_of, left_over
from sail_train.data.tools.measured import check_measured, measure_shard

END = bytes(2 * BLOCK)
"""The mark at the end of an archive."""
UNREADABLE = "unreadable"
"""What samples that no reader would take are counted under."""
ORIGIN_FIELD = b"sail_filter"
"""Metadata of an output's index: a digest of what it was made of, and by which conditions."""


def split_by_conditions(
    table: Any, conditions: Sequence[Condition], readable: np.ndarray
) -> tuple[np.ndarray, dict[str, int]]:
    """((rows,) bool of those kept, dropped samples by the first condition that does not hold)."""
    kept, dropped = readable.copy(), {}
    if count := int((~readable).sum()):
        dropped[UNREADABLE] = count
    for condition in conditions:
        check_measured(condition.column, table)
        holds = condition.mask(table)
        dropped[condition.text] = dropped.get(condition.text, 0) + int((kept & ~holds).sum())
        kept &= holds
    return kept, dropped


def check_evaluable(shards: Sequence[str], texts: Sequence[str]) -> None:
    """Looks at the columns of all indexes alone: asked before finished work is removed to make way.

    Raises:
        ValueError: a condition cannot be evaluated on one of them; an index that cannot be read, or is of another file.
    """
    conditions = [parse(text) for text in texts]
    for shard in shards:
        table = _no_rows(shard)
        try:
            split_by_conditions(table, conditions, np.ones(0, dtype=bool))
        except ValueError as error:
            raise ValueError(f"{shard}: {error} (nothing was removed)") from None


def _no_rows(shard: str) -> Any:
    """The columns of a shard's index, or of the one that would be made for it."""
    import pyarrow
    import pyarrow.parquet

    path = Path(index_path(shard))
    if not path.exists():
        kinds = dict.fromkeys((*OWN_COLUMNS, BAD), pyarrow.string())
        return pyarrow.schema({**kinds, **dict.fromkeys(OWN_COLUMNS[1:], pyarrow.int64())}).empty_table()
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it and run `sail-train data index`") from None
    if (schema.metadata or {}).get(SIZE_FIELD) != str(os.path.getsize(shard)).encode():
        raise ValueError(f"{path} is of another file than {shard}; run `sail-train data index --rebuild`")
    return schema.empty_table()


def readable_rows(shard: str) -> np.ndarray:
    """(rows,) bool: samples that a reader takes, by the headers of the shard."""
    index = ShardFile(shard, source="filter").index()
    mask = np.ones(len(index), dtype=bool)
    mask[list(index.bad)] = False
    return mask


def filter_shard(shard: str, output: str, root: str, texts: Sequence[str]) -> Mapping[str, Any]:
    """Writes the kept samples of one shard to its place under `output`; a shard of none is left out."""
    table = ensure_index(shard)
    kept, dropped = split_by_conditions(table, [parse(text) for text in texts], readable_rows(shard))
    counts: dict[str, Any] = {"read": len(table), "kept": int(kept.sum()), "dropped": len(table) - int(kept.sum())}
    counts["dropped by"] = dropped
    target = str(Path(output) / Path(shard).resolve().relative_to(root))
    if os.path.exists(target) and os.path.samefile(target, shard):
        raise ValueError(f"--out {output} would replace {shard} by a part of itself; choose another folder")
    digest = _digest(shard, texts)
    if not kept.any():
        for stale in (index_path(target), target):
            Path(stale).unlink(missing_ok=True)
        return {**counts, "shards left out": 1}
    if _fits(target, digest):
        return {**counts, jobs.SKIPPED: 1}
    _write(shard, target, table, kept, digest)
    return {**counts, "shards written": 1}


def _digest(shard: str, texts: Sequence[str]) -> bytes:
    """Of the whole index, whose checksums stand for the shard, and of the conditions."""
    digest = hashlib.blake2b(repr(list(texts)).encode(), digest_size=16)
    digest.update(Path(index_path(shard)).read_bytes())
    return digest.hexdigest().encode()


def _fits(target: str, digest: bytes) -> bool:
    if not os.path.exists(target):
        return False
    try:
        table = read_index(target)
    except ValueError:
        return False
    return table is not None and (table.schema.metadata or {}).get(ORIGIN_FIELD) == digest


def _write(shard: str, target: str, table: Any, kept: np.ndarray, digest: bytes) -> None:
    import pyarrow

    Path(target).parent.mkdir(parents=True, exist_ok=True)
    # gone first: between the two renames a new shard must not stand beside an old index that has its size
    Path(index_path(target)).unlink(missing_ok=True)
    table = table.filter(pyarrow.array(kept))
    file, temporary, offsets = ShardFile(shard, source="filter"), f"{target}.{os.getpid()}.tmp", []
    try:
        with open(temporary, "wb") as out:
            spans = zip(table.column("offset").to_pylist(), table.column("size").to_pylist(), strict=True)
            for offset, size in spans:
                offsets.append(out.tell())
                out.write(file.read(offset, size))
            out.write(END)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, target)
    finally:
        file.close()
        Path(temporary).unlink(missing_ok=True)
    place = table.schema.get_field_index("offset")
    table = table.set_column(place, "offset", pyarrow.array(offsets, pyarrow.int64()))
    write_index(target, table.replace_schema_metadata({ORIGIN_FIELD: digest}))


def weigh_shard(shard: str, texts: Sequence[str], reset: bool) -> Mapping[str, Any]:
    """Weight 0 for the samples that do not hold; the others keep their weight, or with `reset` get 1."""
    table = ensure_index(shard)
    kept, dropped = split_by_conditions(table, [parse(text) for text in texts], readable_rows(shard))
    weights = np.ones(len(table)) if reset else weights_of(table)
    before = int((weights > 0).sum())
    add_columns(shard, {"weight": np.where(kept, weights, 0.0)})
    left = int((kept & (weights > 0)).sum())
    counts = {"read": len(table), "kept": int(kept.sum()), "dropped": len(table) - int(kept.sum())}
    return {**counts, "dropped by": dropped, "with a weight before": before, "with a weight now": left}


def weights_of(table: Any) -> np.ndarray:
    """(rows,) float: the `weight` column; 1 where there is none, or a null."""
    if "weight" not in table.column_names:
        return np.ones(len(table))
    return np.array([1.0 if value is None else float(value) for value in table.column("weight").to_pylist()])


def run(argv: list[str]) -> int:
    """The command; 1 if a shard failed."""
    args = _parser().parse_args(argv)
    conditions = [parse(text).text for text in args.where]
    paths, part = jobs.shards_of(args.shards), jobs.parse_part(args.part)
    _check(args, conditions, part)
    if args.measure or args.in_index:
        jobs.check_beside(paths)
    common: dict[str, Any] = {"jobs": args.jobs, "part": part}
    code = 0
    if args.measure:
        processor = str(args.processor) if args.processor else None
        work = (processor, args.format, args.redo)
        measured = jobs.over_shards(paths, measure_shard, work, title="measuring", **common)
        code = jobs.show(measured, as_json=args.json, title="measured")
    if not conditions:
        return code
    if args.in_index:
        summary = jobs.over_shards(paths, weigh_shard, (conditions, args.reset), title="filtering", **common)
    else:
        root = str(jobs.common_folder(paths))
        folders = folders_of(paths, args.out, root)
        stale = left_over(folders, paths, conditions, overwrite=args.overwrite)
        if stale:  # else a shard that cannot be filtered fails by itself, and the others go on
            check_evaluable(paths, conditions)
        claim(folders, conditions, stale)
        work_of = (str(args.out), root, conditions)
        summary = jobs.over_shards(paths, filter_shard, work_of, title="filtering", **common)
        if part == (0, 1) and not summary.failed:
            finish(folders)
    return max(code, jobs.show(summary, as_json=args.json, title="filtered"))


def _check(args: argparse.Namespace, conditions: Sequence[str], part: tuple[int, int]) -> None:
    """ValueError for a command that says too little, or what would be ignored."""
    if not conditions and not args.measure:
        raise ValueError("nothing to do: give --where CONDITION, or --measure")
    if conditions and bool(args.out) == args.in_index:
        raise ValueError("say where to: --out FOLDER for new shards, or --in-index for weights of 0")
    for option, given, needed, there in (
        ("--overwrite", args.overwrite, "--out", args.out),
        ("--reset", args.reset, "--in-index", args.in_index),
        ("--processor", args.processor, "--measure", args.measure),
        ("--redo", args.redo, "--measure", args.measure),
    ):
        if given and not there:
            raise ValueError(f"{option} does nothing without {needed}")
    if args.overwrite and part != (0, 1):
        raise ValueError("--overwrite replaces the whole folder: remove it yourself, then run every --part")
    if args.out:
        jobs.check_folder("--out", args.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sail-train data filter",
        description="Keep the samples for which conditions on their index hold: in new shards, or by weights of 0.",
        epilog="example: sail-train data filter 'data/llava/*.tar' --measure --where 'score_vir >= 3' "
        "--where 'aspect <= 4' --where 'language == en' --out data/llava_good",
    )
    jobs.add_arguments(parser)
    where = "a column, a comparison and a value; all of several must hold"
    parser.add_argument("--where", action="append", default=[], metavar="CONDITION", help=where)
    parser.add_argument("--out", type=Path, help="folder of the new shards")
    parser.add_argument("--overwrite", action="store_true", help="with --out: replace what other conditions kept there")
    parser.add_argument("--in-index", action="store_true", help="copy nothing: write weight 0 into the index")
    parser.add_argument("--reset", action="store_true", help="with --in-index: forget earlier weights")
    parser.add_argument("--measure", action="store_true", help="first write size, length, language ... to the index")
    parser.add_argument("--processor", type=Path, help="with --measure: model, run or tokenizer folder, for num_tokens")
    parser.add_argument("--format", default="messages", help="how samples are read: messages (default) or caption")
    parser.add_argument("--redo", action="store_true", help="measure again what is measured")
    return parser
