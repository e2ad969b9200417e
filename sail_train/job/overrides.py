"""From what was typed (or written in a recipe) to a `Request`: which recipe, stage and groups, and which values.

A token is Hydra's `key=value`, read by Hydra's own grammar; `~key` takes a key away. Four keys are ours (`recipe`,
`stage`, `parent`, `force`), a group's name chooses one of its files, and every other key sets a value wherever it
stands: whether such a key exists is decided once, when the dataclasses are built. A value that is no Hydra literal,
such as `s3://x/{0..999}.tar`, is taken as the text it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

GROUPS = ("model", "data", "engine", "launcher")
"""Config groups of which a token chooses a file, besides `stage` and `recipe`."""

KEY = re.compile(r"^[A-Za-z_][\w\-]*(\.[\w\-]+)*$")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One value set, or one key taken away."""

    key: str
    """Dotted path."""
    value: Any = None
    delete: bool = False


@dataclass(kw_only=True)
class Request:
    """What a list of tokens asks for."""

    recipe: str | None = None
    stage: str | None = None
    parent: str | None = None
    force: bool = False
    groups: dict[str, str] = field(default_factory=dict)
    """Chosen file by group."""
    assignments: list[Assignment] = field(default_factory=list)


def parse_tokens(tokens: Iterable[str]) -> Request:
    """The request that `key=value` tokens make; a `ValueError` names the token that is none."""
    request = Request()
    parser = OverridesParser.create()
    for token in tokens:
        assignment = _parse_token(parser, token)
        if assignment.delete:
            request.assignments.append(assignment)
        else:
            _apply(request, assignment, token)
    return request


def _apply(request: Request, assignment: Assignment, token: str) -> None:
    """Files the assignment under one of our keys, a group or the plain values."""
    key, value = assignment.key, assignment.value
    if key == "force":
        if not isinstance(value, bool):
            raise ValueError(f"{token}: force should be true or false")
        request.force = value
    elif key in ("recipe", "stage", "parent", *GROUPS):
        if not isinstance(value, str | int) or value == "":
            raise ValueError(f"{token}: {key} should be a name, as in {key}={'runs/x' if key == 'parent' else 'tiny'}")
        if key in GROUPS:
            request.groups[key] = str(value)
        else:
            setattr(request, key, str(value))
    else:
        request.assignments.append(assignment)


def _parse_token(parser: OverridesParser, token: str) -> Assignment:
    key, equals, text = token.partition("=")
    bare = key.lstrip("~+")
    if token.startswith("~"):
        if not KEY.match(bare):
            raise ValueError(f"{token!r}: to take a key away write ~key, as in ~data.sources.caption")
        return Assignment(key=bare, delete=True)
    if not equals or not KEY.match(bare):
        raise ValueError(f"{token!r} is no override; write key=value, as in train.max_steps=2")
    return Assignment(key=bare, value=_parse_value(parser, bare, text))


def _parse_value(parser: OverridesParser, key: str, text: str) -> Any:
    try:
        override: Override = parser.parse_override(f"{key}={text}")
    except HydraException as error:
        # a list or mapping with a slip in it would otherwise become a text, and be reported as one
        if text.startswith(("[", "{")):
            raise ValueError(f"{key}={text}: {str(error).splitlines()[0]}; check brackets and quotes") from None
        return text
    if override.is_sweep_override():
        raise ValueError(f"{key}={text} is several values; write a list as {key}=[{text}], a text as {key}='{text}'")
    return override.value()


def parse_entries(overrides: Any, *, where: str) -> Request:
    """The request that a recipe's `overrides` make: a mapping (nested or dotted), or a list of tokens and mappings."""
    merged = Request()
    for item in overrides if isinstance(overrides, list) else [overrides]:
        if isinstance(item, Mapping):
            one = _from_mapping(item, where=where)
        elif isinstance(item, str):
            one = parse_tokens([item])
        else:
            raise ValueError(f"{where}: {item!r} should be a mapping or a text such as train.max_steps=2")
        for name in ("recipe", "stage", "parent", "force"):
            if getattr(one, name):
                raise ValueError(f"{where}: {name} cannot be overridden; it is a field of the entry or of the command")
        merged.groups |= one.groups
        merged.assignments += one.assignments
    return merged


def _from_mapping(mapping: Mapping[str, Any], *, where: str) -> Request:
    request = Request()
    for key, value in flatten(mapping):
        if not KEY.match(key):
            raise ValueError(f"{where}: {key!r} is no dotted key")
        _apply(request, Assignment(key=key, value=value), f"{where}: {key}={value}")
    return request


def flatten(mapping: Mapping[str, Any], *, path: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of every leaf, in order; lists and empty mappings are leaves."""
    leaves: list[tuple[str, Any]] = []
    for key, value in mapping.items():
        dotted = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            leaves += flatten(value, path=dotted)
        else:
            leaves.append((dotted, value))
    return leaves
