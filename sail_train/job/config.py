"""A recipe: the ordered entries, what is prepared for them and where they run. Pure values, no torch.

The graph is checked when a recipe is built: names are unique, a parent stands earlier, so that nothing can be found
out after hours of training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sail_train.config import choice, suggestion

LAUNCHERS = ("local", "srun", "slurm")

SERVICES: dict[str, dict[str, str]] = {"judge": {"rewards.judge.url": "embedded"}}
"""What an entry may ask to be served on loopback while it runs, and the values by which its loop starts it. Every
process has its own, so an entry is the same alone, under torchrun and in a batch job."""


@dataclass(kw_only=True)
class LauncherConfig:
    """Where an entry's ranks run."""

    kind: str = "local"
    """"local": this machine; "srun": the allocation this process is in; "slurm": one batch job per entry."""
    nproc: int = 1
    """Ranks per node. One rank on this machine shares the runner's process, more are started by torchrun."""
    nodes: int = 1
    time: str = ""
    """Longest run of a batch job, as sbatch takes it; a job that reaches it saves and goes on in the queue."""
    gpus_per_node: int = 0
    """Asked of Slurm as --gpus-per-node; 0 asks for none."""
    partition: str = ""
    account: str = ""
    extra: list[str] = field(default_factory=list)
    """Further options of sbatch, each one text such as "--exclusive"."""

    def __post_init__(self) -> None:
        if self.kind not in LAUNCHERS:
            raise ValueError(f"launcher.kind={self.kind!r}: {suggestion(self.kind, LAUNCHERS)}")
        for name in ("nproc", "nodes"):
            if vars(self)[name] < 1:
                raise ValueError(f"launcher.{name}={vars(self)[name]} must be at least 1")
        if self.kind == "local" and self.nodes != 1:
            raise ValueError(f"launcher.nodes={self.nodes} needs launcher=slurm or launcher=srun; local is one machine")
        if self.gpus_per_node < 0:
            raise ValueError(f"launcher.gpus_per_node={self.gpus_per_node} must be 0 (none) or more")
        for option in self.extra:
            if not option.startswith("-"):
                raise ValueError(f"launcher.extra: {option!r} is no option of sbatch; write it as --name=value")


@dataclass(kw_only=True)
class Gate:
    """What an entry must reach before the recipe goes on."""

    metric: str
    """A name of its metrics_after, such as "read/greedy"."""
    min: float
    """Least value, 0..1."""

    def check(self, metrics: dict[str, float]) -> str | None:
        """Why the gate is shut; None if it is open."""
        if self.metric not in metrics:
            return f"{self.metric} was not measured; {suggestion(self.metric, metrics)}"
        value = metrics[self.metric]
        # written so that a NaN is below every floor
        return None if value >= self.min else f"{self.metric} is {value:.4g}, below {self.min:g}"


@dataclass(kw_only=True)
class Entry:
    """One stage in a recipe."""

    name: str
    """Unique in the recipe; its run directory."""
    stage: str = ""
    """File of configs/stage; the entry's name if left out."""
    overrides: list[Any] | dict[str, Any] = field(default_factory=dict)
    """Values and group choices of this entry: a mapping, nested or dotted, or a list of `key=value` and mappings."""
    parents: dict[str, str] = field(default_factory=dict)
    """Role (model, vision, adapter, language, member_1 ...) -> an earlier entry, or a folder (with a "/" in it)."""
    gate: Gate | None = None
    services: list[str] = field(default_factory=list)
    """Served on loopback while the entry runs; names in `SERVICES`."""
    seed_offset: int = 0
    """Added to the run's seed, so that two entries of one stage differ whatever `seed=` the recipe is run with."""

    def __post_init__(self) -> None:
        self.stage = self.stage or self.name
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name={self.name!r} must be a plain folder name")
        for service in self.services:
            choice("services", service, SERVICES)


@dataclass(kw_only=True)
class Recipe:
    """An ordered list of entries."""

    entries: list[Entry]
    name: str = ""
    """Its file's name, unless set."""
    about: str = ""
    """One sentence on what it makes; shown in lists and in the report."""
    overrides: list[Any] | dict[str, Any] = field(default_factory=dict)
    """Of every entry, below the entry's own."""
    prepare: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    """Steps before the first entry, each {name: options}, run when what they make is not there: {synth: {...}}."""

    def __post_init__(self) -> None:
        if not self.entries:
            raise ValueError(f"recipe {self.name}: entries is empty; name at least one stage")
        names = [entry.name for entry in self.entries]
        for i, entry in enumerate(self.entries):
            if entry.name in names[:i]:
                raise ValueError(f"recipe {self.name}: two entries are named {entry.name!r}; give each its own name")
            for role, parent in entry.parents.items():
                _check_parent(self.name, entry.name, role, parent, earlier=names[:i], names=names)

    def entry(self, name: str) -> Entry:
        """The entry of that name; a `ValueError` with the nearest one if there is none."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        names = [entry.name for entry in self.entries]
        raise ValueError(f"stage={name!r}: recipe {self.name} has no such entry; {suggestion(name, names)}")


def _check_parent(recipe: str, entry: str, role: str, parent: str, *, earlier: list[str], names: list[str]) -> None:
    if "/" in parent or parent in earlier:
        return
    where = f"recipe {recipe}: {entry}: parents.{role}={parent!r}"
    if parent == entry:
        raise ValueError(f"{where} is the entry itself; a parent stands earlier in the recipe")
    if parent in names:
        raise ValueError(f"{where} comes later in the recipe; move it before {entry}")
    raise ValueError(f"{where} is no entry; {suggestion(parent, names)}")
