"""Names and shapes of others' weights <-> ours, as rules that are read in both directions.

A rule says under which names a weight of ours is kept elsewhere, and in which shape: several names are pieces of it,
one below the other (gate and up; query, key and value). `to_ours` and `to_theirs` pass tensors on one by one and keep
only pieces whose others have not come yet, so that a model of any size streams through. Both are exact: bits are moved,
never computed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rule:
    ours: str
    """Name; "{n}" is a number, "{rest}" any end."""
    theirs: tuple[str, ...]
    """Names with the same placeholders; several are pieces of ours along its first dimension."""
    shape: str | None = None
    """A name in `SHAPES`, if theirs is not of our shape."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of a folder's weights."""

    loaded: list[str] = field(default_factory=list)
    """Our names."""
    reshaped: list[str] = field(default_factory=list)
    """Our names of those that were kept in another shape or in pieces."""
    unexpected: list[str] = field(default_factory=list)
    """Names in the folder that no part of ours has."""
    missing: list[str] = field(default_factory=list)
    """Names in the folder of pieces whose others are there."""


def _square(tensor: Tensor) -> Tensor:
    side = math.isqrt(tensor.shape[1] // 3)
    return tensor.reshape(len(tensor), 3, side, side)


SHAPES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "convolution": (lambda tensor: tensor.flatten(1), _square),
    "one row of positions": (lambda tensor: tensor.squeeze(0), lambda tensor: tensor.unsqueeze(0)),
}
"""(to ours, to theirs): a convolution over patches (out, 3, side, side) is a matrix (out, 3 * side^2) over their
pixels; a table of positions (1, patches, hidden) is one without the batch."""


@dataclass(kw_only=True)
class _Gathered:
    """Pieces of one weight of ours, by their place in it."""

    rule: Rule
    values: dict[str, str]
    pieces: dict[int, Tensor] = field(default_factory=dict)

    def whole(self, name: str) -> Tensor:
        tensors = [self.pieces[i] for i in range(len(self.rule.theirs))]
        if len({tensor.shape[1:] for tensor in tensors}) > 1:
            raise ValueError(f"the pieces of {name} do not fit: {', '.join(str(tuple(t.shape)) for t in tensors)}")
        return torch.cat(tensors) if len(tensors) > 1 else tensors[0]


def to_ours(
    weights: Iterable[tuple[str, Tensor]], rules: Sequence[Rule], report: LoadReport
) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor) of what the rules know; `report` is complete once all are taken.

    ValueError if pieces of a weight do not fit each other.
    """
    matchers = [(rule, [_pattern(name) for name in rule.theirs]) for rule in rules]
    waiting: dict[str, _Gathered] = {}
    for name, tensor in weights:
        found = _find(name, matchers)
        if found is None:
            report.unexpected.append(name)
            continue
        rule, piece, values = found
        ours = rule.ours.format(**values)
        gathered = waiting.setdefault(ours, _Gathered(rule=rule, values=values))
        gathered.pieces[piece] = SHAPES[rule.shape][0](tensor) if rule.shape else tensor
        if len(gathered.pieces) == len(rule.theirs):
            report.loaded.append(ours)
            if rule.shape or len(rule.theirs) > 1:
                report.reshaped.append(ours)
            yield ours, waiting.pop(ours).whole(ours)
    for gathered in waiting.values():
        names = enumerate(gathered.rule.theirs)
        report.missing.extend(name.format(**gathered.values) for i, name in names if i not in gathered.pieces)


def to_theirs(weights: Iterable[tuple[str, Tensor]], rules: Sequence[Rule]) -> Iterator[tuple[str, Tensor]]:
    """(their name, tensor) of our weights; ValueError for one that the rules have no name for."""
    matchers = [(rule, [_pattern(rule.ours)]) for rule in rules]
    for ours, tensor in weights:
        found = _find(ours, matchers)
        if found is None:
            raise ValueError(f"the weight {ours} has no name there")
        rule, _, values = found
        for name, piece in zip(rule.theirs, tensor.chunk(len(rule.theirs)), strict=True):
            yield name.format(**values), SHAPES[rule.shape][1](piece) if rule.shape else piece


Matchers = Sequence[tuple[Rule, Sequence[re.Pattern[str]]]]


def _find(name: str, matchers: Matchers) -> tuple[Rule, int, dict[str, str]] | None:
    """The rule that knows the name, which of its patterns it is, and what stands at the placeholders."""
    for rule, patterns in matchers:
        for i, pattern in enumerate(patterns):
            if found := pattern.fullmatch(name):
                return rule, i, found.groupdict()
    return None


def _pattern(name: str) -> re.Pattern[str]:
    escaped = re.escape(name).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{rest\}", "(?P<rest>.+)")
    return re.compile(escaped)
