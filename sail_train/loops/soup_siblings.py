"""Whether runs are siblings, so that the average of their weights can mean something.

Siblings come from one parent checkpoint by one stage, and their folders agree in architecture, tokenizer, processor
and in every tensor's name, shape and dtype. Only headers of the weights are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sail_train.model.folder import resolve, weight_files

MUST_EQUAL = {
    "architecture": ("config.json",),
    "tokenizer": ("tokenizer.json", "chat_template.jinja"),
    "processor": ("processor_config.json", "preprocessor_config.json"),
}
"""What members must share byte for byte besides their tensors' names, shapes and dtypes."""

MAX_NAMED = 5
"""Differing tensors that a message names."""


Header = tuple[str, tuple[int, ...]]
"""(dtype, shape) of a tensor."""


def check_siblings(members: Mapping[str, Path]) -> None:
    """ValueError that names every difference that makes an average meaningless: descent, stage, shapes, tokenizer."""
    (first_role, first), *others = members.items()
    for role, path in others:
        found = descent_differences(first, path) + differences(resolve(first), resolve(path))
        if found:
            raise ValueError(
                f"{first_role}={first} and {role}={path} are no siblings, their average would mean nothing:"
                f" they differ in {'; '.join(found)}. A soup takes runs of one stage from one parent"
            )


def descent_differences(first: Path, other: Path) -> list[str]:
    """How the two runs' lineages differ in stage, loop and parents."""
    left, right = lineage(first), lineage(other)
    found = [
        f"{name} ({left.get(name)!r} and {right.get(name)!r})"
        for name in ("stage", "loop")
        if left.get(name) != right.get(name)
    ]
    hashes = [{role: parent.get("hash") for role, parent in one.get("parents", {}).items()} for one in (left, right)]
    if hashes[0] != hashes[1]:
        shown = ["+".join(f"{role} {str(value)[:12]}" for role, value in one.items()) or "none" for one in hashes]
        found.append(f"parent checkpoint ({shown[0]} and {shown[1]})")
    return found


def lineage(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "lineage.json"
    if not path.is_file():
        raise ValueError(f"{run_dir} has no lineage.json, so nothing tells whose sibling it is; give a run directory")
    return json.loads(path.read_text())


def differences(first: Path, other: Path) -> list[str]:
    """What keeps two model folders from being averaged, in words; empty if nothing does."""
    found = []
    for what, names in MUST_EQUAL.items():
        unequal = [name for name in names if _bytes_hash(first / name) != _bytes_hash(other / name)]
        if unequal:
            found.append(f"{what} ({', '.join(unequal)} differ)")
    return found + _tensor_differences(tensor_headers(first), tensor_headers(other))


def _bytes_hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _tensor_differences(first: Mapping[str, Header], other: Mapping[str, Header]) -> list[str]:
    found = []
    only_one = sorted(set(first) ^ set(other))
    if only_one:
        found.append(f"tensor names ({_some(only_one)} in one only)")
    unequal = [name for name in sorted(set(first) & set(other)) if first[name] != other[name]]
    if unequal:
        shown = [f"{name} {_header(first[name])} and {_header(other[name])}" for name in unequal]
        found.append(f"tensor shapes or dtypes ({_some(shown)})")
    return found


def _header(header: Header) -> str:
    dtype, shape = header
    return f"{dtype} {'x'.join(map(str, shape)) or 'scalar'}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def tensor_headers(folder: Path) -> dict[str, Header]:
    """dtype and shape of every tensor, from the files' headers alone."""
    headers: dict[str, Header] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                view = file.get_slice(name)
                headers[name] = (view.get_dtype(), tuple(view.get_shape()))
    return headers
