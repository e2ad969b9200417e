"""Field maps: which of a public data set's fields is what, as YAML in configs/import/ or in a file of the user's.

    layout: problem                      how the record is read once its fields have our names
    fields: {problem: question, images: image}      our name: theirs; then nothing else of the record is read
    meta: {category: category}           fields kept with each sample, under our name: theirs

A map is data: it names fields and choices, and nothing of it is evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sail_train import rewards
from sail_train.config import choice, suggestion, to_dataclass
from sail_train.data.tools import LAYOUTS
from sail_train.types import BadSample

MAPS = Path(__file__).resolve().parents[3] / "configs" / "import"
"""The shipped maps: beside the package in a checkout, from which it is installed in place."""

NAMES = (
    "id", "images", "videos", "conversations", "system", "messages", "texts", "prompt", "problem", "answer",
    "solution", "chosen", "rejected", "mode", "verifier",
)  # fmt: skip
"""Our names of fields."""
OPTIONAL = ("images", "videos", "system", "id", "mode", "solution")
"""Fields that a record may do without."""
RESERVED = ("id", "license", "origin", "source", "preference", "converted")
"""Keys of a sample's meta that the import itself writes."""
MARKS = {
    "auto": "prepend where the layout has no marks of its own, else refuse",
    "refuse": "bad sample",
    "prepend": "all ahead of the first question",
}
"""What becomes of a record with images and no mark of where they stand."""
UNMARKED = ("preference", "problem")
"""Layouts whose records seldom mark an image: a question has its picture, and that is all."""


@dataclass(kw_only=True)
class Sections:
    """Answers written in tagged sections, <NAME>...</NAME>, of which some are the thought."""

    think: list[str]
    """Tags whose texts become the thought, in this order."""
    answer: list[str]
    """Tags whose texts become what is said."""

    def __post_init__(self) -> None:
        if not self.think or not self.answer:
            raise ValueError(f"think={self.think} and answer={self.answer} must each name at least one tag")


@dataclass(kw_only=True)
class FieldMap:
    """How the records of one data set are read, and what is recorded of where they come from."""

    about: str = ""
    """One line for people."""
    origin: str = ""
    """Address that the data set is got from; recorded with every sample."""
    license: str = ""
    """As its card has it; recorded with every sample."""
    layout: str = "auto"
    """A name in `LAYOUTS`, or "auto": each record's own."""
    fields: dict[str, str] = field(default_factory=dict)
    """Our name of a field -> theirs ("a.b": b within a). Empty: fields have our names already."""
    meta: dict[str, str] = field(default_factory=dict)
    """Key in the sample's meta -> their field."""
    verifier: str = ""
    """Verifier of all answers (`sail_train.rewards.VERIFIERS`), where a record names none."""
    marks: str = "auto"
    """A name in `MARKS`."""
    thought: Sections | None = None
    """Tags of assistant turns that become `<think>`; null leaves the turns as they are."""
    roots: str = ""
    """Name of a JSON file beside the input or above it, {any: {"annotation": FILE, "root": FOLDER}}, that says below
    which folder the images of each input are (as MMPR's meta.json); empty: there is none."""

    def __post_init__(self) -> None:
        if self.layout != "auto":
            choice("layout", self.layout, LAYOUTS)
        if self.verifier:
            choice("verifier", self.verifier, rewards.VERIFIERS)
        choice("marks", self.marks, MARKS)
        for name in self.fields:
            choice("fields", name, dict.fromkeys(NAMES))
        if taken := [name for name in self.meta if name in RESERVED]:
            raise ValueError(f"meta: {', '.join(taken)} is written by the import itself; choose another key")

    def prepends(self, layout: str) -> bool:
        """Whether a record of this layout that marks nothing shows its images first."""
        return self.marks == "prepend" or (self.marks == "auto" and layout in UNMARKED)

    def apply(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record under our names; BadSample "missing_field"."""
        if not self.fields:
            return dict(record)
        named = {ours: _field(record, theirs, optional=ours in OPTIONAL) for ours, theirs in self.fields.items()}
        return {ours: value for ours, value in named.items() if value is not None}

    def kept(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What the sample's meta keeps of the record: plain values, anything else as text."""
        values = {ours: _field(record, theirs, optional=True) for ours, theirs in self.meta.items()}
        return {
            name: value if isinstance(value, str | int | float) else str(value)
            for name, value in values.items()
            if value is not None
        }


def _field(record: Mapping[str, Any], path: str, *, optional: bool) -> Any:
    value: Any = record
    for name in [path] if path in record else path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None and not optional:
        raise BadSample("missing_field", f"no {path!r} among {', '.join(map(str, list(record)[:12]))}")
    return value


def shipped() -> dict[str, Path]:
    """The shipped maps by name."""
    return {path.stem: path for path in sorted(MAPS.glob("*.yaml"))}


def load_map(name: str) -> FieldMap:
    """A shipped map by its name, or one of the user's by its path (.yaml).

    Raises:
        ValueError: there is none, or it does not say what a map says.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else shipped().get(name)
    if path is None or not path.is_file():
        raise ValueError(f"--map {name}: no such map; {suggestion(name, shipped())} Or give the path of a .yaml file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return to_dataclass(FieldMap, values or {})
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def rewritten(answer: str, sections: Sections) -> str:
    """An answer in tagged sections as a thought and what is said; BadSample "bad_thought" if one is missing."""
    thought = "\n\n".join(_section(answer, tag) for tag in sections.think)
    said = "\n\n".join(_section(answer, tag) for tag in sections.answer)
    return f"<think>\n{thought}\n</think>\n\n{said}"


def _section(answer: str, tag: str) -> str:
    _, opened, rest = answer.partition(f"<{tag}>")
    inside, closed, _ = rest.partition(f"</{tag}>")
    if not opened or not closed or not inside.strip():
        raise BadSample("bad_thought", f"no text in <{tag}>...</{tag}>")
    return inside.strip()
