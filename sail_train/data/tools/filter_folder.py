"""What a filtered folder is of: dataset.json beside the new shards, with their parent's fields and the conditions.

claim (before the work: another filter's result is not mixed with this one's) -> the shards -> their number and size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sail_train.data.index import index_path
from sail_train.data.tools.indexing import DATASET, describe_folder

FILTER = "filter"
"""Field of dataset.json: of which folder a set was filtered, and by what."""
COUNTS = ("samples", "images", "videos", "bytes", "shards", "read", "refused", "complete")
"""Fields of a parent that its filtered set does not share."""


def folders_of(paths: Sequence[str], output: Path, root: str) -> dict[Path, Path]:
    """The folder of new shards by that of the shards they are of."""
    sources = dict.fromkeys(Path(path).resolve().parent for path in paths)
    return {source: output / source.relative_to(root) for source in sources}


def claim(folders: Mapping[Path, Path], conditions: Sequence[str], *, overwrite: bool) -> None:
    """Writes what the folders are going to hold.

    Raises:
        ValueError: one holds something else, and is not to be overwritten or is no filter's.
    """
    stale: list[Path] = []
    parents = {source: described(source) or {} for source in folders}
    wanted = {target: {"of": str(source), "conditions": list(conditions)} for source, target in folders.items()}
    for target, made_by in wanted.items():
        if target.resolve() in folders:
            raise ValueError(f"--out {target} would replace shards by a part of themselves; choose another folder")
        found = described(target)
        if found is None or (made := _made_by(found)) == made_by:
            continue
        if made is None:
            raise ValueError(f"--out {target} holds a data set that no filter made; choose another folder")
        shards = sorted(target.glob("*.tar"))  # none: what came to nothing, as by a mistyped column, is in nobody's way
        if shards and not overwrite:
            raise ValueError(
                f"--out {target} holds what {made['conditions']} kept of {made['of']}, not {made_by['conditions']} of "
                f"{made_by['of']}; choose another folder, or --overwrite replaces all of it"
            )
        stale += shards
    for path in stale:
        Path(index_path(str(path))).unlink(missing_ok=True)
        path.unlink()
    for source, target in folders.items():
        parent = parents[source]
        kept = {name: value for name, value in parent.items() if name not in (*COUNTS, FILTER)}
        earlier = {"before": parent[FILTER]} if FILTER in parent else {}
        _write(target, {**kept, FILTER: {**wanted[target], **earlier}})


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


def _write(folder: Path, fields: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{DATASET}.{os.getpid()}"
    aside.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(folder / DATASET)
