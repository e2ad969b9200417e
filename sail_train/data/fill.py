"""Which of the waiting samples make a row: at most `seq_length` tokens and `max_patches` patches at once.

A row begins with the sample that has waited longest, so that none starves: a sample that enters a buffer of n is in
the n-th row from there at the latest, or after `max_wait` rows where that is set and there is room. The rest of the
row is filled from a buffer of at most `pack_buffer` samples, in one of two ways, until nothing in the full buffer fits:

- subset: those of the buffer whose lengths add up to the most that fits, found exactly (subset sum, one bit a token);
  of several such sets the one with the longest waiting. The buffer is topped up and asked again, since a row may hold
  more samples than wait at once. Where a set has too many patches, the longest sample that fits is taken, and a set
  looked for again when half of the room is left: so the searches of a row cost about as much as two.
- best_fit: again and again the longest that still fits, the buffer topped up after each.

Nothing here knows what a sample is; `pack_lengths` packs bare numbers, for measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sail_train.data.config import DataConfig


class Sized(Protocol):
    """What a row is filled with."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_patches(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


class Fill(Generic[Item]):
    """Rows of what `draw` gives, several items at a time; it raises StopIteration when there is no more."""

    def __init__(self, draw: Callable[[], Sequence[Item]], config: DataConfig) -> None:
        self._draw = draw
        self._config = config
        self.waiting: list[Item] = []
        """Longest waiting first."""
        self.ages: list[int] = []
        """Rows that each has waited."""

    def row(self) -> tuple[Item, ...]:
        """The next row; empty when nothing is left."""
        self._top_up()
        if not self.waiting:
            return ()
        row: _Row[Item] = _Row(self._config)
        self._move(0, row)
        self._add_overdue(row)
        if self._config.packing == "subset":
            self._add_subsets(row)
        else:
            self._add_best(row)
        self.ages = [age + 1 for age in self.ages]
        return tuple(row.items)

    def _top_up(self) -> None:
        while len(self.waiting) < self._config.pack_buffer:
            try:
                drawn = self._draw()
            except StopIteration:
                return
            self.waiting.extend(drawn)
            self.ages.extend([0] * len(drawn))

    def _add_overdue(self, row: _Row[Item]) -> None:
        if self._config.max_wait is None:
            return
        place = 0
        while place < len(self.waiting):
            if self.ages[place] >= self._config.max_wait and row.holds(self.waiting[place]):
                self._move(place, row)
            else:
                place += 1

    def _add_subsets(self, row: _Row[Item]) -> None:
        searched_from = row.tokens
        while True:
            self._top_up()
            places = None
            if row.tokens <= searched_from:
                places = subset(self.waiting, row.tokens, row.patches)
            if places is None:
                searched_from = min(searched_from, row.tokens // 2)
                longest = best_fit(self.waiting, row.tokens, row.patches)
                places = [] if longest is None else [longest]
            if not places:
                return
            for place in reversed(places):
                self._move(place, row)

    def _add_best(self, row: _Row[Item]) -> None:
        while True:
            self._top_up()
            place = best_fit(self.waiting, row.tokens, row.patches)
            if place is None:
                return
            self._move(place, row)

    def _move(self, place: int, row: _Row[Item]) -> None:
        row.add(self.waiting.pop(place))
        self.ages.pop(place)


class _Row(Generic[Item]):
    """A row that is being filled, and its room left."""

    def __init__(self, config: DataConfig) -> None:
        self.items: list[Item] = []
        self.tokens, self.patches = config.seq_length, config.max_patches

    def holds(self, item: Item) -> bool:
        return item.num_tokens <= self.tokens and item.num_patches <= self.patches

    def add(self, item: Item) -> None:
        self.items.append(item)
        self.tokens -= item.num_tokens
        self.patches -= item.num_patches


def best_fit(waiting: Sequence[Sized], tokens: int, patches: int) -> int | None:
    """Place of the longest sample within both limits, the longest waiting of equals; None if none fits."""
    best, longest = None, 0
    for place, item in enumerate(waiting):
        if longest < item.num_tokens <= tokens and item.num_patches <= patches:
            best, longest = place, item.num_tokens
    return best


def subset(waiting: Sequence[Sized], tokens: int, patches: int) -> list[int] | None:
    """Places, ascending, of the samples that together come closest to `tokens`; None if they have too many patches."""
    fitting = [place for place, one in enumerate(waiting) if one.num_tokens <= tokens and one.num_patches <= patches]
    found = [fitting[number] for number in subset_sum([waiting[place].num_tokens for place in fitting], tokens)]
    return found if sum(waiting[place].num_patches for place in found) <= patches else None


def subset_sum(lengths: Sequence[int], capacity: int) -> list[int]:
    """Places, ascending, of lengths with the largest sum <= capacity; of several such sets one with few of the last."""
    mask = (1 << (min(capacity, sum(lengths)) + 1)) - 1
    reached = [1]  # bit s: some of the lengths so far add up to s
    for length in lengths:
        reached.append((reached[-1] | reached[-1] << length) & mask)
    total, found = reached[-1].bit_length() - 1, []
    for place in range(len(lengths) - 1, -1, -1):
        if not reached[place] >> total & 1:
            found.append(place)
            total -= lengths[place]
    return found[::-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Numbered:
    number: int
    num_tokens: int
    num_patches: int


def pack_lengths(lengths: Sequence[int], patches: Sequence[int], config: DataConfig) -> list[list[int]]:
    """Rows of sample numbers, as one stream would pack samples of these tokens and patches in this order.

    The order within a row is that in which they were chosen. What no row holds must be left out before.
    """
    items: Iterator[_Numbered] = (
        _Numbered(number=number, num_tokens=length, num_patches=of_images)
        for number, (length, of_images) in enumerate(zip(lengths, patches, strict=True))
    )
    fill: Fill[_Numbered] = Fill(lambda: [next(items)], config)
    return [[item.number for item in row] for row in iter(fill.row, ())]
