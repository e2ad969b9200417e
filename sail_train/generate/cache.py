"""The key-value cache of a changing batch: rows come and go, every row writes to the same column.

A row that enters is laid so that its prompt ends at the current column, whatever its length; a step then writes one
column of all rows and reads one slice, without concatenation, gather or scatter. A row that leaves is filled with the
last one, so live rows stay the first `active` ones. When the columns run out, everything is moved to the left.
`left` is where the oldest live row starts; each row's own start makes its mask and its positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache


class SlotLayer(CacheLayerMixin):
    """One layer of a `SlotCache`: (rows, kv heads, columns, head_dim), allocated once."""

    keys: Tensor
    values: Tensor

    def __init__(self, slots: SlotCache, like: Tensor) -> None:
        super().__init__()
        self.slots = slots
        _, heads, _, dim = like.shape
        # Zeros, not empty: a masked position still multiplies its value by a weight of zero.
        self.keys = like.new_zeros(slots.rows, heads, slots.columns, dim)
        self.values = torch.zeros_like(self.keys)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is lazy: the layer is allocated from the first prefill."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one column of the live rows; return their keys and values from `left` to that column."""
        slots = self.slots
        assert key_states.shape[-2] == 1, "a slot cache is decoded one token at a time"
        self.keys[: slots.active, :, slots.column] = key_states[:, :, 0]
        self.values[: slots.active, :, slots.column] = value_states[:, :, 0]
        window = slice(slots.left, slots.column + 1)
        return self.keys[: slots.active, :, window], self.values[: slots.active, :, window]

    def lay(self, *, column: int, columns: int, rows: int) -> None:
        """Move what the live rows hold into `rows` x `columns` new places, so that it ends before `column`."""
        slots, shift = self.slots, column - self.slots.column
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(rows, old.shape[1], columns, old.shape[-1])
            new[: slots.active, :, slots.left + shift : column] = old[: slots.active, :, slots.left : slots.column]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.slots.column - self.slots.left

    def get_max_length(self) -> int:
        return self.slots.columns

    def get_max_cache_shape(self) -> int:
        """The name that transformers before 5.20 calls."""
        return self.slots.columns


class SlotCache(Cache):
    """Keys and values of up to `rows` sequences, each at most `columns` tokens long."""

    def __init__(self, prefill: DynamicCache, *, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns
        self.column = 0
        """Where the next token of every live row is written."""
        self.left = 0
        self.active = 0
        states = key_values(prefill)
        self.start = torch.zeros(rows, dtype=torch.int64, device=states[0][0].device)
        """(rows,) column of each live row's first token."""
        self.slot_layers = [SlotLayer(self, keys) for keys, _ in states]
        super().__init__(layers=list(self.slot_layers))

    def admit(self, prefill: DynamicCache, copies: int) -> None:
        """Add `copies` rows of each prompt in `prefill` (prompts, heads, length, dim)."""
        states = key_values(prefill)
        prompts, _, length, _ = states[0][0].shape
        if self.active == 0:
            self.left, self.column = 0, length
        first, begin, end = self.column - length, self.active, self.active + prompts * copies
        assert first >= 0 and end <= self.rows, "prompts enter longest first and only into free rows"
        for layer, (keys, values) in zip(self.slot_layers, states, strict=True):
            layer.keys[begin:end, :, first : self.column] = keys.repeat_interleave(copies, dim=0)
            layer.values[begin:end, :, first : self.column] = values.repeat_interleave(copies, dim=0)
        self.start[begin:end] = first
        self.active = end
        self.left = min(self.left, first)

    def drop(self, finished: Tensor) -> Tensor:
        """Remove the rows where `finished` (active,) is true; return (kept,) which old row each live row now is."""
        kept = self.active - int(finished.sum())
        order = torch.arange(self.active, device=finished.device)
        holes = order[:kept][finished[:kept]]
        movers = order[kept:][~finished[kept:]]
        order[holes] = movers
        for layer in self.slot_layers:
            window = (slice(None), slice(self.left, self.column))
            layer.keys[(holes, *window)] = layer.keys[(movers, *window)]
            layer.values[(holes, *window)] = layer.values[(movers, *window)]
        self.start[holes] = self.start[movers]
        self.active = kept
        if kept:
            self.left = int(self.start[:kept].min())
        return order[:kept]

    def advance(self) -> None:
        """Go to the next column; when it is the last, first move what lives to the left."""
        self.column += 1
        if self.column == self.columns and self.active:
            span = self.column - self.left
            for layer in self.slot_layers:
                for states in (layer.keys, layer.values):
                    states[: self.active, :, :span] = states[: self.active, :, self.left :].clone()
            self.start -= self.left
            self.left, self.column = 0, span

    def lay(self, *, column: int, columns: int, rows: int) -> None:
        """Go on at `column` of `columns`: room for rows that are longer than those that live, or will be, or more."""
        assert self.column - self.left <= column < columns, "what lives must fit before the column"
        assert rows >= self.rows, "rows are not taken away"
        for layer in self.slot_layers:
            layer.lay(column=column, columns=columns, rows=rows)
        shift = column - self.column
        self.start = torch.cat((self.start + shift, self.start.new_zeros(rows - self.rows)))
        self.rows = rows
        self.left, self.column, self.columns = self.left + shift, column, columns

    def positions(self) -> Tensor:
        """(active, 1) position of the token about to be written in each live row."""
        return (self.column - self.start[: self.active]).unsqueeze(-1)

    def mask(self) -> Tensor:
        """(active, 1, 1, left..column) additive: a row sees itself from its own start."""
        columns = torch.arange(self.left, self.column + 1, device=self.start.device)
        hidden = columns < self.start[: self.active, None]  # (active, columns)
        mask = torch.zeros(hidden.shape, dtype=self.slot_layers[0].keys.dtype, device=hidden.device)
        return mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)[:, None, None, :]


def key_values(prefill: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (prompts, kv heads, length, head_dim) of each layer."""
    layers: list[Any] = prefill.layers
    return [(layer.keys, layer.values) for layer in layers]
