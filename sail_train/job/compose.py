"""From groups and values to one config, and back to where each value came from.

`Configs` knows the folders: names -> the files that Hydra's defaults lists name, merged in their order -> values laid
over them in layers (recipe, entry, command line). `Composed` resolves it twice: with the environment for the run, and
with `${oc.env:...}` left standing for whatever is written down, where secrets are blanked too.
Hydra's own overrides carry the group choices only; values are laid on afterwards, so that any field of the
dataclasses can be set and `to_dataclass` alone decides what exists.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sail_train.config import nearest, suggestion
from sail_train.job.overrides import Assignment, flatten

ROOT = "run"
"""Name of the root file in configs/."""

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""The shipped configs: beside the package in a checkout, from which it is installed in place."""

SECRET = re.compile(r"(^|_)(api_?key|access_?key|secret(_key)?|password|passwd|token|credentials?)$", re.IGNORECASE)
"""Keys whose text never reaches a file; `api_key_env` and `eos_token_id` are none of them."""

USERINFO = re.compile(r"(?<=://)[^/\s@]+@")
"""The user and password of an address."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Values laid over the files, and how their place is named to a reader."""

    label: str
    assignments: Sequence[Assignment]


@dataclass(kw_only=True)
class Composed:
    """One composed config, unresolved."""

    tree: DictConfig
    origins: dict[str, str]
    """Where each leaf's value comes from, by dotted key: a file, a layer's label."""

    def resolved(self) -> dict[str, Any]:
        """Plain values, every interpolation filled in."""
        return _resolve(self.tree)

    def masked(self) -> dict[str, Any]:
        """Plain values with references to the environment left as they are written."""
        with _environment_unread():
            return _resolve(self.tree)


@dataclass(frozen=True, kw_only=True)
class Configs:
    """The folders that configs are looked up in."""

    folders: tuple[Path, ...] = field(default=(CONFIGS,))
    """The shipped one, then the user's own (`--config-dir`)."""

    def __post_init__(self) -> None:
        for folder in self.folders:
            if not folder.is_dir():
                raise ValueError(f"--config-dir {folder}: no such folder")

    def names(self, group: str) -> list[str]:
        """What the group offers, e.g. the stages; files in folders of it as `folder/name`."""
        found = {
            str(path.relative_to(folder / group).with_suffix(""))
            for folder in self.folders
            for path in (folder / group).rglob("*.yaml")
        }
        return sorted(found)

    def check(self, group: str, name: str) -> str:
        """`name`, if the group has it; a `ValueError` with the nearest one otherwise."""
        names = self.names(group)
        if name not in names:
            raise ValueError(f"{group}={name!r}: there is no such {group}; {suggestion(name, names)}")
        return name

    def load(self, group: str, name: str) -> dict[str, Any]:
        """One file of a group by itself, interpolations unresolved: how a recipe is read."""
        path = self._find(f"{group}/{self.check(group, name)}")
        assert path is not None
        return copy.deepcopy(_content(path, path.stat().st_mtime_ns))

    def compose(
        self, *, stage: str, groups: Mapping[str, str], layers: Sequence[Layer], only: Collection[str] = ()
    ) -> Composed:
        """The config of a stage with the chosen groups and the layers on top, later ones winning.

        `only` leaves out the files of all groups but these: a model by itself.
        """
        choices = {"stage": stage, **groups}
        tokens = [f"{group}={self.check(group, name)}" for group, name in choices.items()]
        tree: Any = OmegaConf.create({})
        origins: dict[str, str] = {}
        for name, package in self._files(tokens):
            path = self._find(name)
            if path is None or (only and name.partition("/")[0] not in only):  # None: one of hydra's own
                continue
            content = _packaged(_content(path, path.stat().st_mtime_ns), package)
            origins |= {key: _shown(path) for key, _ in flatten(content)}
            tree = OmegaConf.merge(tree, content)
        for layer in layers:
            for assignment in layer.assignments:
                _lay(tree, origins, assignment, layer.label)
        return Composed(tree=tree, origins=origins)

    def _files(self, tokens: list[str]) -> list[tuple[str, str]]:
        """(file, package) of every file that Hydra's defaults lists name, in the order in which they are merged."""
        extra = [f"file://{folder.resolve()}" for folder in self.folders[1:]]
        tokens = tokens + ([f"hydra.searchpath=[{','.join(extra)}]"] if extra else [])
        try:
            with initialize_config_dir(str(self.folders[0].resolve()), version_base="1.3", job_name="sail_train"):
                loader = GlobalHydra.instance().config_loader()
                defaults = loader.compute_defaults_list(ROOT, tokens, RunMode.RUN).defaults
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise ValueError(f"configs: {' '.join(str(error).split())}") from None
        return [(item.config_path, item.package or "") for item in defaults if item.config_path]

    def _find(self, name: str) -> Path | None:
        paths = (folder / f"{name}.yaml" for folder in self.folders)
        return next((path for path in paths if path.is_file()), None)


def _packaged(content: dict[str, Any], package: str) -> dict[str, Any]:
    """The content at the place that its package means: `model` for a file of that group, the root for `_global_`."""
    for key in reversed(package.split(".") if package not in ("", "_global_") else []):
        content = {key: content}
    return content


def read_yaml(path: Path) -> Any:
    """A YAML file's plain content; a `ValueError` names the file and the line that is none."""
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


@functools.lru_cache(maxsize=1024)
def _content(path: Path, changed: int) -> dict[str, Any]:
    """A file without its defaults list; read again only if it changed, since a recipe composes its files many times."""
    content = OmegaConf.to_container(_load(path), resolve=False)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: should be a mapping of keys to values")
    return {str(key): value for key, value in content.items() if key != "defaults"}


def _load(path: Path) -> Any:
    try:
        return OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def _shown(path: Path) -> str:
    """`configs/...` for what is shipped, else the path itself."""
    return str(path.relative_to(CONFIGS.parent)) if path.is_relative_to(CONFIGS) else str(path)


def _lay(tree: DictConfig, origins: dict[str, str], assignment: Assignment, label: str) -> None:
    """One assignment onto the tree."""
    key = assignment.key
    inside = [path for path in origins if path == key or path.startswith(f"{key}.")]
    if assignment.delete:
        if not inside:
            raise ValueError(f"~{key}: there is no such key to take away; {_neighbour(key, origins)}")
        parent, _, leaf = key.rpartition(".")
        OmegaConf.select(tree, parent).pop(leaf) if parent else tree.pop(leaf)
    else:
        try:
            OmegaConf.update(tree, key, copy.deepcopy(assignment.value), merge=True, force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{key}={assignment.value!r} cannot be set: {' '.join(str(error).split())}") from None
    for path in inside:
        # a mapping is merged into what stands; anything else replaces it
        if assignment.delete or not isinstance(assignment.value, Mapping):
            del origins[path]
    if not assignment.delete:
        leaves = flatten(assignment.value, path=key) if isinstance(assignment.value, Mapping) else [(key, None)]
        origins |= {path: label for path, _ in leaves}


def _neighbour(key: str, origins: Mapping[str, str]) -> str:
    prefixes = {".".join(path.split(".")[: i + 1]) for path in origins for i in range(path.count(".") + 1)}
    near = nearest(key, prefixes)
    return f"did you mean {near!r}?" if near else "`sail-train config` prints those there are"


def _resolve(tree: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = error.full_key or error.key or "config"
        missing = isinstance(error, MissingMandatoryValue)
        why = "must be given" if missing else str(error.msg or error).splitlines()[0]
        raise ValueError(f"{key}: {why}; set {key}=...") from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@contextmanager
def _environment_unread() -> Iterator[None]:
    """Within it `${oc.env:NAME}` resolves to its own text, also where another value refers to it."""

    def literal(name: str) -> Any:
        # the colon form takes one or two arguments; a default may itself be secret, so only the name is shown
        def resolver(first: Any, *_: Any) -> str:
            return str(first) if str(first).startswith("${") else f"${{{name}:{first}}}"

        return resolver

    names = ("oc.env", "oc.decode")
    try:
        for name in names:
            OmegaConf.register_new_resolver(name, literal(name), replace=True)
        yield
    finally:
        _register_environment()


def _register_environment() -> None:
    from omegaconf.resolvers import oc

    OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    OmegaConf.register_new_resolver("oc.decode", oc.decode, replace=True)


def redacted(value: Any, *, key: str = "") -> Any:
    """A copy of plain values fit to be written down: secrets by their key, and passwords in addresses, are blanked."""
    if isinstance(value, Mapping):
        return {name: redacted(item, key=str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [redacted(item, key=key) for item in value]
    if isinstance(value, str):
        if value and SECRET.search(key) and not value.startswith("${"):
            return "<redacted>"
        return USERINFO.sub("<redacted>@", value)
    return value
