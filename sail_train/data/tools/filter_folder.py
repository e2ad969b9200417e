"""What a filtered folder is of: dataset.json beside the new shards, with their parent's fields and the conditions.

left_over (what stands in the way: another filter's result, or shards whose parents are gone, is not mixed with this
one's) -> claim (before the work) -> the shards -> their number and size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sail_train.data.dataset import DATASET, write_dataset
from sail_train.data.index import index_path
from sail_train.data.tools.indexing import describe_folder

FILTER = "filter"
"""Field of dataset.json: of which folder a set was filtered, and by what."""
COUNTS = ("samples", "images", "videos", "bytes", "shards", "read", "refused", "complete")
"""Fields of a parent that its filtered set does not share."""
SHOWN = 5
"""Shards that are named where they stand in the way."""


def folders_of(paths: Sequence[str], output: Path, root: str) -> dict[Path, Path]:
    """The folder of new shards by that of the shards they are of."""
    sources = dict.fromkeys(Path(path).resolve().parent for path in paths)
    return {source: output / source.relative_to(root) for source in sources}


def left_over(
    folders: Mapping[Path, Path], paths: Sequence[str], conditions: Sequence[str], *, overwrite: bool
) -> list[Path]:
    """The shards that have to go before `paths` are filtered into the folders; nothing is removed here.

    `paths` are those of all parts: what another part is going to write is not left over.

    Raises:
        ValueError: a folder holds something else, and is not to be overwritten or is no filter's.
    """
    stale: list[Path] = []
    sources = [Path(path).resolve() for path in paths]
    for source, made_by in _wanted(folders, conditions).items():
        target = folders[source]
        if target.resolve() in folders:
            raise ValueError(f"--out {target} would replace shards by a part of themselves; choose another folder")
        found = described(target)
        if found is None:
            continue
        if (made := _made_by(found)) is None:
            raise ValueError(f"--out {target} holds a data set that no filter made; choose another folder")
        shards = sorted(target.glob("*.tar"))  # none: what came to nothing, as by a mistyped column, is in nobody's way
        if made == made_by:
            written = {path.name for path in sources if path.parent == source}
            shards = [shard for shard in shards if shard.name not in written]
        if shards and not overwrite:
            raise ValueError(_in_the_way(target, made, made_by, shards))
        stale += shards
    return stale


def _in_the_way(target: Path, made: Mapping[str, Any], made_by: Mapping[str, Any], shards: Sequence[Path]) -> str:
    if made != made_by:
        return (
            f"--out {target} holds what {made['conditions']} kept of {made['of']}, not {made_by['conditions']} of "
            f"{made_by['of']}; choose another folder, or --overwrite replaces all of it"
        )
    more = f" and {len(shards) - SHOWN} more" if len(shards) > SHOWN else ""
    names = ", ".join(shard.name for shard in shards[:SHOWN]) + more
    return (
        f"--out {target} holds {names}, of which no shard is among those named; name all shards of {made['of']} at "
        "once, or remove what is left over: --overwrite does"
    )


def claim(folders: Mapping[Path, Path], conditions: Sequence[str], stale: Sequence[Path]) -> None:
    """Removes what `left_over` found and writes what the folders are going to hold.

    Raises:
        ValueError: the dataset.json of a parent is none; then nothing is removed.
    """
    parents = {source: described(source) or {} for source in folders}
    for path in stale:
        Path(index_path(str(path))).unlink(missing_ok=True)
        path.unlink()
    for source, made_by in _wanted(folders, conditions).items():
        parent = parents[source]
        kept = {name: value for name, value in parent.items() if name not in (*COUNTS, FILTER)}
        earlier = {"before": parent[FILTER]} if FILTER in parent else {}
        write_dataset(folders[source], {**kept, FILTER: {**made_by, **earlier}})


def _wanted(folders: Mapping[Path, Path], conditions: Sequence[str]) -> dict[Path, dict[str, Any]]:
    """What the dataset.json of each folder is to say, by the folder of its parents."""
    return {source: {"of": str(source), "conditions": list(conditions)} for source in folders}


def finish(folders: Mapping[Path, Path]) -> None:
    """Adds samples, bytes and shards, when all are there."""
    for target in folders.values():
        describe_folder(target)


def described(folder: Path) -> dict[str, Any] | None:
    """The dataset.json of a folder; empty if it holds shards without one, None if it holds neither.

    Raises:
        ValueError: what it has is no JSON object.
    """
    try:
        found = json.loads((folder / DATASET).read_bytes())
    except FileNotFoundError:
        return {} if next(folder.glob("*.tar"), None) is not None else None
    except ValueError as error:
        raise ValueError(f"{folder / DATASET} is no JSON ({error}); mend or remove it") from None
    if not isinstance(found, dict):
        raise ValueError(f"{folder / DATASET} is no JSON object; mend or remove it")
    return found


def _made_by(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of which folder and by which conditions; None if that is not told."""
    made = found.get(FILTER)
    if not isinstance(made, dict) or not {"of", "conditions"} <= made.keys():
        return None
    return {"of": made["of"], "conditions": made["conditions"]}
