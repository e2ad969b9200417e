"""From plain mappings to typed dataclasses and back: the one place where a config's keys and types are checked.

`choice` looks a name up in a table; `to_dataclass` builds a dataclass, and the dataclasses, lists and dicts in it,
from what YAML gave; `to_mapping` goes back. Whatever a user can get wrong (an unknown key, a wrong type, a missing
value) is a `ValueError` with the whole dotted path and, where there is one, the nearest right name.
OmegaConf's own structured configs are left out: they drop misspelt `+key=value` without a word and know neither
`str | list[str]` nor tuples.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")

MAX_LISTED = 20
"""Names listed in a message before it says how many more there are."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` was most likely meant to be, if any is near."""
    lowered = {candidate.lower(): candidate for candidate in names}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[found[0]] if found else None


def suggestion(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest right one, else all of them."""
    known = sorted(names)
    near = nearest(name, known)
    if near is not None:
        return f"did you mean {near!r}?"
    if not known:
        return "there are none to choose from"
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return f"known: {', '.join(known[:MAX_LISTED])}{more}"


def choice(field: str, value: str, table: Mapping[str, T]) -> T:
    """`table[value]`; a `ValueError` that names `field`, the choices and the nearest one if it is not there."""
    if value not in table:
        near = nearest(str(value), table)
        hint = f"; did you mean {near!r}?" if near is not None else ""
        raise ValueError(f"{field}={value!r} is none of {', '.join(sorted(table))}{hint}")
    return table[value]


def to_dataclass(cls: type[T], mapping: Mapping[str, Any], *, path: str = "") -> T:
    """`cls` built from `mapping`, recursively.

    Args:
        cls: a dataclass; its fields may be dataclasses, `list`, `tuple`, `dict[str, ...]`, unions, enums and scalars.
        mapping: plain values as YAML gives them. An int is taken for a float, nothing else is converted.
        path: where `mapping` stands in the whole config, put before every key in messages.

    Raises:
        ValueError: an unknown or missing key, a wrong type, or what `cls.__post_init__` refuses.
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{path or cls.__name__}: {mapping!r} should be a mapping of keys to values")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise ValueError(f"{_join(path, key)}: unknown key; {suggestion(str(key), fields)}")
    for name, field in fields.items():
        if name not in mapping and _required(field):
            raise ValueError(f"{_join(path, name)}: missing and has no default; set {_join(path, name)}=...")
    hints = _hints(cls)
    values = {key: _convert(hints[key], value, _join(path, key)) for key, value in mapping.items()}
    try:
        return cls(**values)
    except ValueError as error:
        # some messages name the field from the root on, as "engine.zero_stage=5 ..." does
        named = not path or str(error).startswith(f"{path.split('.')[0]}.")
        raise ValueError(str(error) if named else f"{path}: {error}") from None


def to_mapping(value: Any) -> dict[str, Any]:
    """The plain mapping of a config dataclass, fit for YAML and JSON: tuples become lists, enums their values."""
    plain = _plain(value)
    assert isinstance(plain, dict), f"{type(value).__name__} is no dataclass"
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    """`typing.get_type_hints`, once per class: it compiles every annotation string anew."""
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type `hint` asks for, or a `ValueError`."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else to_dataclass(hint, value, path=path)  # type: ignore[arg-type]
    if (origin or hint) in (list, tuple):
        return _convert_sequence(origin or hint, arguments, value, path)
    if (origin or hint) in (dict, Mapping):
        return _convert_dict(arguments, value, path)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return choice(path, getattr(value, "value", value), {str(member.value): member for member in hint})
    return _convert_scalar(hint, value, path)


def _convert_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    """The first option that takes `value`; with one option besides None, that option's own message."""
    if value is None and type(None) in options:
        return None
    real = [option for option in options if option is not type(None)]
    if len(real) == 1:
        return _convert(real[0], value, path)
    for option in real:
        try:
            return _convert(option, value, path)
        except ValueError:
            continue
    raise ValueError(f"{path}={value!r} should be {' or '.join(_name(option) for option in options)}")


def _convert_sequence(origin: type, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path}={value!r} should be a list, as in {path}=[a,b]")
    fixed = origin is tuple and bool(arguments) and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        raise ValueError(f"{path}={list(value)!r} should have {len(arguments)} values, not {len(value)}")
    hints = arguments if fixed else (arguments or (Any,))[:1] * len(value)
    return origin(_convert(hint, item, f"{path}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True)))


def _convert_dict(arguments: tuple[Any, ...], value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}={value!r} should be a mapping of names to values")
    key_hint, hint = arguments or (str, Any)
    for key in value:
        if key_hint is str and not isinstance(key, str):
            raise ValueError(f"{path}: the key {key!r} should be a string; write it in quotes")
    return {key: _convert(hint, item, _join(path, key)) for key, item in value.items()}


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int, and `max_steps: true` is a mistake rather than 1
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        shown = "null" if value is None else repr(value)
        raise ValueError(f"{path}={shown} should be {_name(hint)}, not {_name(type(value))}")
    # no limit is met by a comparison with nan, and JSON has neither
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{path}={value} should be a finite number")
    return value


def _name(hint: Any) -> str:
    """A type as a user says it."""
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
    if isinstance(hint, type) and hint in words and typing.get_origin(hint) is None:
        return words[hint]
    origin = typing.get_origin(hint) or hint
    kinds = {list: "a list", tuple: "a list", dict: "a mapping"}
    return kinds.get(origin, str(hint)) if not dataclasses.is_dataclass(hint) else "a mapping"
