"""`sail-train data import`: foreign records and their images -> shards.

Image bytes are kept as they are; each is decoded once to see that it can be. A record that cannot be used is
written to <prefix>-rejected.jsonl with its reason: nothing is dropped without a line there.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from sail_train.config import choice
from sail_train.data.conversation import MODES, text
from sail_train.data.tar import MAX_MEMBER_BYTES
from sail_train.data.tools import LAYOUTS
from sail_train.data.tools.imported import ImageRef, Imported
from sail_train.data.tools.records import Record, read_records
from sail_train.data.writer import image_extension, write_shards
from sail_train.processor.images import open_image
from sail_train.types import BadSample, Conversation

_DATA_URL = re.compile(r"data:image/[a-z+.-]+;base64,(.*)", re.DOTALL)


@dataclass(kw_only=True)
class ImportOptions:
    """What to import and where to."""

    input: Path
    """A .json, .jsonl or .parquet file, or a folder of them."""
    output: Path
    """Folder of the shards."""
    prefix: str
    """First part of the shards' names; also the name under which samples remember their source."""
    layout: str = "auto"
    """A name in `LAYOUTS`, or "auto": each record's own."""
    images: Path | None = None
    """Folder that image paths are relative to, and must stay inside; None: the input's folder."""
    samples_per_shard: int = 1000
    limit: int = 0
    """Records read; 0 reads all."""
    overwrite: bool = False
    """Replace shards of the same prefix."""


@dataclass(kw_only=True)
class ImportReport:
    """What became of the records."""

    imported: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Records by reason."""
    shards: list[Path] = field(default_factory=list)
    rejected_file: Path | None = None
    """Every rejected record with its reason; None where there is none."""


def import_records(options: ImportOptions) -> ImportReport:
    """Writes the shards, and the rejected records beside them.

    Raises:
        ValueError: input that is no list of records, an unknown layout, shards that are there already, or not a
            single usable record.
    """
    if options.layout != "auto":
        choice("layout", options.layout, LAYOUTS)
    report = ImportReport()
    rejected: list[dict[str, Any]] = []
    report.shards = write_shards(
        _conversations(options, report, rejected),
        options.output,
        options.prefix,
        options.samples_per_shard,
        overwrite=options.overwrite,
    )
    path = options.output / f"{options.prefix}-rejected.jsonl"
    path.unlink(missing_ok=True)
    if rejected:
        path.write_text("".join(json.dumps(record) + "\n" for record in rejected))
        report.rejected_file = path
    return report


def _conversations(
    options: ImportOptions, report: ImportReport, rejected: list[dict[str, Any]]
) -> Iterator[Conversation]:
    root = options.images or (options.input if options.input.is_dir() else options.input.parent)
    for number, record in enumerate(read_records(options.input)):
        if options.limit and number >= options.limit:
            return
        try:
            yield _conversation(record, number, options, root.resolve())
            report.imported += 1
        except BadSample as error:
            report.rejected[error.reason] += 1
            name = record.get("id") if isinstance(record, Mapping) else None
            line = {"record": number, "id": str(name) if name is not None else None}
            rejected.append({**line, "reason": error.reason, "detail": error.detail})


def _conversation(record: Record, number: int, options: ImportOptions, root: Path) -> Conversation:
    if isinstance(record, BadSample):
        raise record
    if not isinstance(record, Mapping):
        raise BadSample("bad_record", f"is {type(record).__name__}, not an object")
    imported = _read(record, options.layout)
    values = {name: _text_field(record, name) for name in ("answer", "verifier", "mode")}
    if values["mode"] not in MODES:
        raise BadSample("bad_field", f"mode={values['mode']!r:.80} must be 'think' or 'direct'")
    return Conversation(
        key=f"{number:08d}",
        source=options.prefix,
        messages=imported.messages,
        images=tuple(load_image(ref, root) for ref in imported.images),
        answer=values["answer"],
        verifier=values["verifier"],
        mode=values["mode"] or _mode(imported),
        meta={"id": text(str(record["id"]))} if record.get("id") is not None else {},
    )


def _text_field(record: Mapping[str, Any], name: str) -> str | None:
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        raise BadSample("bad_field", f"{name}={value!r:.80} should be a text")
    return None if value is None else text(value)


def _read(record: Mapping[str, Any], layout: str) -> Imported:
    names = list(LAYOUTS) if layout == "auto" else [layout]
    for name in names:
        module = importlib.import_module(LAYOUTS[name])
        if module.matches(record):
            return module.read(record)
    keys = ", ".join(map(str, list(record)[:8]))
    raise BadSample("unknown_layout", f"keys {keys} are those of no layout ({', '.join(names)})")


def _mode(imported: Imported) -> str | None:
    """How the last answer opens: with a thought or not; None without an answer."""
    last = imported.messages[-1]
    if last.role != "assistant":
        return None
    return "think" if last.text.lstrip().startswith("<think>") else "direct"


def load_image(ref: ImageRef, root: Path) -> bytes:
    """The bytes of an image, known to decode.

    Raises:
        BadSample: a path that leaves `root`, a file that is missing or too large, an address on the network, or
            something that is no image.
    """
    if isinstance(ref, Mapping):
        ref = ref.get("bytes") or ref.get("path") or ""
    content = ref if isinstance(ref, bytes) else _from_url(ref) if isinstance(ref, str) else b""
    if content is None:
        content = _from_file(str(ref), root)
    if len(content) > MAX_MEMBER_BYTES:
        raise BadSample("image_too_large", f"{len(content)} bytes, the limit is {MAX_MEMBER_BYTES}")
    open_image(content)
    try:
        image_extension(content)
    except ValueError as error:
        raise BadSample("image_unreadable", str(error)) from None
    return content


def _from_url(ref: str) -> bytes | None:
    """The bytes of a data URL; None for a path."""
    if ref.startswith("data:"):
        match = _DATA_URL.fullmatch(ref)
        try:
            return base64.b64decode(match[1] if match else "", validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadSample("image_unreadable", f"data URL: {error}") from None
    if "://" in ref and not ref.startswith("file://"):
        raise BadSample("remote_image", f"{ref!r:.120} is not fetched; download the images and give their folder")
    return None


def _from_file(ref: str, root: Path) -> bytes:
    try:
        # resolved first: neither ".." nor a link inside the folder may lead out of it
        path = (root / ref.removeprefix("file://")).resolve()
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError) as error:  # a name that no file can have
        raise BadSample("image_missing", f"{ref!r:.120}: {error}") from None
    if not path.is_relative_to(root):
        raise BadSample("outside_folder", f"{ref!r:.120} is not inside {root}; name its folder with --images")
    if size is None:
        raise BadSample("image_missing", f"{path} does not exist")
    if size > MAX_MEMBER_BYTES:
        raise BadSample("image_too_large", f"{path} is larger than {MAX_MEMBER_BYTES} bytes")
    return path.read_bytes()


def run(argv: list[str]) -> int:
    """The command; 0 if no more records than --max-rejected were refused."""
    parser = argparse.ArgumentParser(
        prog="sail-train data import",
        description="Turn LLaVA or OpenAI-style records (.json, .jsonl, .parquet) and their images into shards.",
        epilog="example: sail-train data import llava.json --images coco/ --out data/llava --prefix llava",
    )
    parser.add_argument("input", type=Path, help="file of records, or a folder of such files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--prefix", required=True, help="first part of the shards' names, and name of the source")
    parser.add_argument("--layout", default="auto", help=f"{', '.join(LAYOUTS)} or auto (default)")
    parser.add_argument("--images", type=Path, help="folder of the images (default: the input's)")
    parser.add_argument("--samples-per-shard", type=int, default=1000)
    parser.add_argument("--limit", type=int, default=0, help="records to read; 0 (default) reads all")
    parser.add_argument("--overwrite", action="store_true", help="replace shards of the same prefix")
    parser.add_argument("--max-rejected", type=float, default=0.05, help="share that still exits with 0 (default 0.05)")
    args = parser.parse_args(argv)
    options = ImportOptions(
        input=args.input, output=args.out, prefix=args.prefix, layout=args.layout, images=args.images,
        samples_per_shard=args.samples_per_shard, limit=args.limit, overwrite=args.overwrite,
    )  # fmt: skip
    try:
        report = import_records(options)
    except ValueError as error:
        parser.error(str(error))
    show(report)
    total = report.imported + report.rejected.total()
    return 0 if report.imported and report.rejected.total() <= args.max_rejected * total else 1


def show(report: ImportReport) -> None:
    """Prints the summary."""
    console = Console(soft_wrap=True)
    console.print(f"imported {report.imported} records into {len(report.shards)} shards", highlight=False)
    for reason, count in report.rejected.most_common():
        console.print(f"rejected {count}: {reason}", style="yellow", highlight=False)
    if report.rejected_file is not None:
        console.print(f"each rejected record and why: {report.rejected_file}", highlight=False)
