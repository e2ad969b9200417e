"""Which fields of a record an import did not use: what a record says beside them is lost, and the summary says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sail_train.data.tools.answers import CALLS, FLAGS, REASONING

_OF_A_TURN = {*FLAGS, *REASONING, *CALLS}
TURNS: dict[str, set[str]] = {
    "messages": {"role", "content"} | _OF_A_TURN,
    "prompt": {"role", "content"} | _OF_A_TURN,
    "conversations": {"from", "value"} | _OF_A_TURN,
    "texts": {"user", "assistant"},
}
"""Fields that are read of the entries of a record's lists."""


class Noted(dict[str, Any]):
    """A record that knows which of its fields were asked for by `get`, as every layout asks."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__(record)
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


def unused(record: Mapping[str, Any], named: Noted, fields: Mapping[str, str], meta: Mapping[str, str]) -> list[str]:
    """The fields of a record that hold something and that nothing asked for, those of its turns as "messages[].name".

    `fields` and `meta` are a map's: our name -> theirs. Without `fields` the names are ours already.
    """
    used = {theirs for ours, theirs in fields.items() if ours in named.asked} if fields else set(named.asked)
    used |= set(meta.values())
    tops = used | {name.partition(".")[0] for name in used}
    left = [name for name, value in record.items() if name not in tops and _holds(value)]
    return left + sorted(set(_of_turns(named)))


def _of_turns(named: Noted) -> Iterator[str]:
    for name in TURNS.keys() & named.asked:
        for turn in named[name] if isinstance(named.get(name), list) else []:
            if isinstance(turn, Mapping):
                yield from (f"{name}[].{key}" for key in turn if key not in TURNS[name] and _holds(turn[key]))


def _holds(value: Any) -> bool:
    return value is not None and value not in ("", [], {})
