"""The shards that a run began with, and what has become of them since.

`remembered` is what a run writes down when it starts (shards.json): of each source the sizes of up to 1,024 shards,
and the names that its globs found. `lost` compares a resumed run's shards with that. Where some are gone or cut short
and the source skips such shards, `held` has the names that it began with: a glob lists the others only, and the
order of a run depends on the number of shards and their names. Folders may move: shards are known by their file names,
where no two of a source have the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.listing import NAMES_IN_HASH, ShardList, are_plain, expand, matches
from sail_train.data.remote import is_remote, shown
from sail_train.data.shard_file import ShardFile, UnreadableShard

Remembered = Mapping[str, Mapping[str, Any]]
"""By source: "sizes", [path, bytes] of some shards (null: missing or remote), and "names" of all if a glob found them,
else null."""


def remembered(config: DataConfig) -> dict[str, dict[str, Any]]:
    """JSON: what is to be known of the shards later on."""
    return {name: _remember(name, source) for name, source in config.sources.items() if source.weight > 0}


def lost(name: str, source: SourceConfig, before: Mapping[str, Any]) -> list[str] | None:
    """Shards of a source that are gone or shorter than they were; None where something else about them changed.

    Raises:
        ValueError: they cannot be told, for instance because a glob finds none any more.
    """
    shards = _listed(name, source)[0]
    if before["names"] is None:
        looked = shards.spread(NAMES_IN_HASH)
        if _base([path for path, _ in before["sizes"]]) != _base([shown(path) for path in looked]):
            return None
        gone: set[str] = set()
    else:
        places = _places(before["names"], shards)
        if places is None:
            return None
        looked = [places.get(path, path) for path, _ in before["sizes"]]
        gone = set(before["names"]) - places.keys()
    for path, (_, size) in zip(looked, before["sizes"], strict=True):
        now = _size(path)
        if size is None or path in gone or now == size:
            continue
        if now is not None and (now > size or not _is_cut_short(path)):
            return None
        gone.add(path)
    return sorted(gone)


def held(config: DataConfig, known: Remembered) -> dict[str, list[str]]:
    """Of sources that skip missing shards and whose globs miss some: the shards that they began with."""
    found = {}
    for name, source in config.sources.items():
        names = known[name]["names"] if source.on_bad_shard == "skip" and name in known else None
        if not names:
            continue
        places = _places(names, _listed(name, source)[0])
        if places is not None and len(places) < len(names):
            found[name] = [places.get(path, path) for path in names]
    return found


def hold(config: DataConfig, names: Mapping[str, list[str]]) -> None:
    """Puts what was `held` in the place of the globs."""
    for source, shards in names.items():
        config.sources[source].shards = shards


def _remember(name: str, source: SourceConfig) -> dict[str, Any]:
    shards, globbed = _listed(name, source)
    # a signed URL is nobody else's: its query stays in the list file
    sizes = [[shown(path), _size(path)] for path in shards.spread(NAMES_IN_HASH)]
    return {"names": list(shards) if globbed and are_plain(shards) else None, "sizes": sizes}


def _listed(name: str, source: SourceConfig) -> tuple[ShardList, bool]:
    """A source's shards, and whether a glob found any of them."""
    globs: list[str] = []

    def list_folder(name: str, pattern: str) -> list[str]:
        globs.append(pattern)
        return matches(name, pattern)

    shards = expand(name, source.patterns, list_folder=list_folder, skip_missing=source.on_bad_shard == "skip")
    return shards, bool(globs)


def _places(names: Sequence[str], shards: Sequence[str]) -> dict[str, str] | None:
    """Where each shard is now, by the name that it had, without those that are gone; None where others came."""
    if set(shards) <= set(names):
        return {path: path for path in shards}
    now = {os.path.basename(path): path for path in shards}
    before = {os.path.basename(path): path for path in names}
    if len(now) < len(shards) or len(before) < len(names) or not now.keys() <= before.keys():
        return None
    return {before[base]: path for base, path in now.items()}


def _is_cut_short(path: str) -> bool:
    """A shorter shard that is whole is another one."""
    try:
        return ShardFile(path, source="resume").scan().damage is not None
    except (OSError, UnreadableShard):
        return False


def _base(paths: Sequence[str]) -> list[str]:
    """Folders may move."""
    return [os.path.basename(path) for path in paths]


def _size(path: str) -> int | None:
    try:
        return None if is_remote(path) else os.path.getsize(path)
    except OSError:
        return None
