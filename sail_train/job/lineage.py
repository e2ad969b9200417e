"""Where a result comes from, and what of that has changed since.

`record` is what a run writes down when it starts (lineage.json): parents with the hash of their models, code, data.
`changes` compares a job with what its directory says and names every difference, config leaf by config leaf.
A leaf that alters no result (logging, prefetching, the micro batch) and the place of the directories are left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sail_train.config import choice
from sail_train.data.listing import describe, expand
from sail_train.job.code import code_hash, version
from sail_train.job.compose import read_yaml
from sail_train.job.job import Job
from sail_train.job.overrides import flatten
from sail_train.job.shards import Remembered, lost
from sail_train.loops import LOOPS
from sail_train.loops.config import RunConfig

log = logging.getLogger(__name__)

INERT = (
    "run_dir", "recipe_dir", "parents", "log", "train.log_every", "train.save_every", "train.keep", "eval.show",
    "eval.batch_size", "engine.timeout_minutes", "engine.bucket_elements", "data.micro_batch", "data.prefetch",
    "data.decode_threads", "data.workers", "data.balance", "data.balance_group",
    "data.index_dir", "data.allow_mix_change", "data.max_bad_in_a_row", "data.buffer_warning_gib",
)  # fmt: skip
"""Keys, with all below them, that may change without changing the result. Of parents the models count, by hash."""

MIX = ("weight", "size", "epochs", "max_tokens", "start_step", "stop_step")
"""Keys of a source that may change on resume where that is asked for."""
FAULTS = ("on_bad_shard", "max_bad")
"""Keys of a source that may always change: a run that data stopped is to go on, and whole data does not feel them."""
UNSET = "(unset)"
SHARDS = "shards.json"
"""What a run directory keeps of the shards it began with, see `sail_train.job.shards`."""
SHOWN = 5
"""Shards that a message names."""


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: aside, flushed to the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file of ours; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): it was damaged; take the run's directory away") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} should hold a JSON object: it was damaged; take the run's directory away")
    return value


def model_folder(parent: str, *, role: str) -> Path:
    """The model folder that a parent means: `model/` of a finished run, or the folder itself."""
    path = Path(parent)
    for folder in (path / "model", path):
        if (folder / "config.json").is_file():
            return folder
    what = "is no run or model folder" if path.is_dir() else "does not exist"
    begun = (path / "lineage.json").is_file()
    hint = "it was not trained to its end; run that stage first" if begun else "check the path"
    raise ValueError(f"parents.{role}={parent}: {what} (no model/config.json or config.json there); {hint}")


def model_hash(folder: Path) -> str:
    """Sha256 over names and contents of the folder's weights, config and tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".safetensors", ".json", ".jinja", ".txt"):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name}\n{content}\n".encode())
    return digest.hexdigest()


def parents(config: RunConfig) -> dict[str, dict[str, str]]:
    """Of each role: the path as configured, the model folder, its hash. Raises ValueError for one that is not there."""
    found = {}
    for role, parent in config.parents.items():
        folder = model_folder(parent, role=role)
        outcome = read_json(Path(parent) / "outcome.json") or {}
        digest = outcome.get("model_hash") or model_hash(folder)
        found[role] = {"path": parent, "model": str(folder), "hash": str(digest)}
    return found


def data(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Of each source: number of shards, bytes, and a hash of names and sizes. Held-out sources are named as such."""
    sources = {name: source for name, source in config.data.sources.items() if source.weight > 0}
    skipping = {f"data.sources.{name}" for name, source in sources.items() if source.on_bad_shard == "skip"}
    used = {f"data.sources.{name}": source.shards for name, source in sources.items()}
    used |= {f"valid.{name}": source.shards for name, source in config.valid.items()}
    used |= {f"eval.suites.{name}": config.eval.suites[name].shards for name in config.eval.modes}
    return {name: _shards(name, shards, skip_missing=name in skipping) for name, shards in used.items()}


def _shards(name: str, shards: str | list[str], *, skip_missing: bool) -> dict[str, Any]:
    patterns = [shards] if isinstance(shards, str) else shards
    found = expand(name.rpartition(".")[2], patterns, skip_missing=skip_missing)
    return describe(found, skip_missing=skip_missing)


def loop_module(config: RunConfig) -> str:
    """The module of the job's loop; `ValueError` with the nearest name for one that is not in the table."""
    return choice("loop", config.loop, LOOPS).partition(":")[0]


def record(job: Job) -> dict[str, Any]:
    """What lineage.json says."""
    return {
        "recipe": job.recipe,
        "name": job.name,
        "stage": job.stage,
        "loop": job.config.loop,
        "seed": job.config.seed,
        "needs": list(job.needs),
        "parents": parents(job.config),
        "code": {"version": version(), "hash": code_hash(loop_module(job.config))},
        "data": data(job.config),
    }


def changes(job: Job, *, ignore_code: bool = False, mix_may_change: bool = False) -> list[str]:
    """What differs between the job and what its run directory was made with, one readable line each.

    Args:
        mix_may_change: as if the job had `data.allow_mix_change`.
    """
    written, made = job.run_dir / "config.yaml", read_json(job.run_dir / "lineage.json")
    if made is None or not written.is_file():
        return []
    found = config_changes(read_yaml(written) or {}, job.written, mix_may_change=mix_may_change)
    found += _parent_changes(made["parents"], parents(job.config))
    if not ignore_code and made["code"]["hash"] != code_hash(loop_module(job.config)):
        found.append(f"code: {made['code']['version']} -> {version()} (modules that the {job.config.loop} loop uses)")
    return found + _data_changes(made["data"], job.config, read_json(job.run_dir / SHARDS) or {})


def only_mix_changed(job: Job, *, ignore_code: bool = False) -> bool:
    """Whether all that differs is what `data.allow_mix_change` lets change."""
    return not changes(job, ignore_code=ignore_code, mix_may_change=True)


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any], *, mix_may_change: bool = False) -> list[str]:
    """Leaves that differ, as `train.max_steps: 200 -> 300`."""
    before, after = dict(flatten(old)), dict(flatten(new))
    mix_may_change |= after.get("data.allow_mix_change") is True
    lines = []
    for key in sorted({**before, **after}):
        if any(key == inert or key.startswith(f"{inert}.") for inert in INERT) or _of_faults(key):
            continue
        if mix_may_change and _of_mix(key, before):
            continue
        values = [leaves.get(key, UNSET) for leaves in (before, after)]
        # a key that comes or goes with an empty mapping is no difference
        if values[0] != values[1] and any(value not in (UNSET, {}) for value in values):
            lines.append(f"{key}: {_short(values[0])} -> {_short(values[1])}")
    return lines


def _of_faults(key: str) -> bool:
    return key.startswith("data.sources.") and key.rpartition(".")[2] in FAULTS


def _of_mix(key: str, before: Mapping[str, Any]) -> bool:
    """What `data.allow_mix_change` lets change; the stream tells and records what did, or refuses it."""
    if key == "data.temperature":
        return True
    source, _, leaf = key.removeprefix("data.sources.").partition(".")
    known = any(other.startswith(f"data.sources.{source}.") for other in before)
    return key.startswith("data.sources.") and (leaf in MIX or not known)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parent_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    lines = []
    for role in sorted({**old, **new}):
        digests = [str(side[role]["hash"])[:12] if role in side else UNSET for side in (old, new)]
        if digests[0] != digests[1]:
            path = (new if role in new else old)[role]["path"]
            lines.append(f"parents.{role}: the model of {path} changed, {digests[0]} -> {digests[1]}")
    return lines


def _data_changes(old: Mapping[str, Any], config: RunConfig, known: Remembered) -> list[str]:
    try:
        new = data(config)
        lines = [
            _shards_changed(source, old[source], now, config, known) for source, now in new.items() if source in old
        ]
    except ValueError:
        return []  # shards that were taken away after training do not unmake what was learnt from them
    return [line for line in lines if line]


def _shards_changed(
    place: str, old: Mapping[str, Any], now: Mapping[str, Any], config: RunConfig, known: Remembered
) -> str | None:
    """What changed about the shards of a source that keeps the run from going on."""
    if old["hash"] == now["hash"] is not None:
        return None
    name = place.removeprefix("data.sources.")
    if name == place or name not in known:
        unknown = None in (old["hash"], now["hash"])
        return None if unknown else f"{place}: the shards changed, {_amount(old)} -> {_amount(now)}"
    source = config.data.sources[name]
    missing = lost(name, source, known[name])
    if missing is None:
        return f"{place}: the shards changed, {_amount(old)} -> {_amount(now)}"
    if not missing:
        return None
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    told = f"{len(missing)} of its shards are gone or shorter than they were ({', '.join(missing[:SHOWN])}{more})"
    if source.on_bad_shard == "skip":
        log.warning("%s: %s; what is missing is left out (on_bad_shard=skip)", place, told)
        return None
    return f"{place}: {told}; restore them, or go on without what is missing with {place}.on_bad_shard=skip"


def _amount(shards: Mapping[str, Any]) -> str:
    size = "" if shards["bytes"] is None else f" of {shards['bytes']} bytes"
    return f"{shards['shards']} shards{size}"
