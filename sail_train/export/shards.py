"""Tensors, one after the other -> safetensors files of limited size, in a folder that is whole or not there.

`aside` is the folder while it is being written; `ShardWriter` holds one file's tensors at a time, so that a model of
any size passes through a few gigabytes of memory.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SHARD_SIZE = "5GB"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MARGIN = 2**20
"""Room left for config, tokenizer and headers."""


def parse_size(text: str) -> int:
    """Bytes that "5GB" means; ValueError for what is no such size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise ValueError(f"shard_size={text!r} must be a number above 0 with a unit, as in 5GB or 500MB")
    return size


@contextmanager
def aside(out: Path, need: int) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end, or nothing if that was not reached.

    ValueError if `out` is there already, or its disk has less than `need` bytes left.
    """
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} exists; give a new folder")
    there = next(parent for parent in out.absolute().parents if parent.exists())
    if not there.is_dir():
        raise ValueError(f"{out} cannot be made: {there} is a file")
    if (free := shutil.disk_usage(there).free) < need + _MARGIN:
        raise ValueError(f"{out} needs {need / 1e9:.2f} GB, but its disk has {free / 1e9:.2f} GB left")
    folder = out.with_name(out.name + ".writing")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class ShardWriter:
    """Writes model.safetensors, or model-0000x-of-0000y.safetensors and their index once there is more than one."""

    def __init__(self, folder: Path, shard_size: int) -> None:
        self._folder, self._limit = folder, shard_size
        self._waiting: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []
        self._bytes = self._waiting_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """The next tensor; a name may come once."""
        assert name not in self._waiting and all(name not in shard for shard in self._shards), f"{name} came twice"
        size = tensor.nbytes
        if self._waiting and self._waiting_bytes + size > self._limit:
            self._flush()
        self._waiting[name] = tensor.contiguous()
        self._waiting_bytes += size
        self._bytes += size

    def close(self) -> None:
        """The files under their final names, and the index."""
        self._flush()
        if len(self._shards) == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        names = [f"model-{i + 1:05}-of-{len(self._shards):05}.safetensors" for i in range(len(self._shards))]
        for i, name in enumerate(names):
            self._part(i).rename(self._folder / name)
        of = {tensor: name for name, shard in zip(names, self._shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": self._bytes}, "weight_map": dict(sorted(of.items()))}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"

    def _flush(self) -> None:
        assert self._waiting, "a model has weights"
        save_file(self._waiting, self._part(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._waiting))
        self._waiting, self._waiting_bytes = {}, 0


def weight_bytes(files: Sequence[Path]) -> int:
    """Size of weight files on disk."""
    return sum(file.stat().st_size for file in files)
