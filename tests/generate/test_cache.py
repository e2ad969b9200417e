"""The slot cache against a plain list of what each row has seen."""

import random

import torch
from transformers.cache_utils import DynamicCache

from sail_train.generate.cache import SlotCache


def prefilled(values: list[list[float]]) -> DynamicCache:
    cache = DynamicCache()
    states = torch.tensor(values)[:, None, :, None]  # (prompts, 1 head, length, 1)
    cache.update(states, -states, 0)
    return cache


def test_rows_keep_their_own_tokens_while_others_come_go_and_move():
    """Rows enter and leave at random; after each step every row sees its own tokens, in order, and nothing else."""
    chance = random.Random(0)
    first = prefilled([[1.0, 2.0, 3.0]])
    cache = SlotCache(first, rows=6, columns=20)
    rows: list[list[float]] = []
    number, moved = 10.0, 0
    for step in range(300):
        if len(rows) <= 4 and (not rows or (chance.random() < 0.3 and cache.column >= 3)):
            prompt = [number, number + 0.25, number + 0.5]
            cache.admit(prefilled([prompt]), 2)
            rows += [list(prompt), list(prompt)]
            number += 1
        new = torch.tensor([step * 100.0 + i for i in range(len(rows))])
        for row, value in zip(rows, new.tolist(), strict=True):
            row.append(value)
        hidden = cache.mask()[:, 0, 0] < 0
        positions = cache.positions()[:, 0].tolist()
        keys, values = cache.update(new[:, None, None, None], -new[:, None, None, None], 0)
        for i, row in enumerate(rows):
            assert keys[i, 0, :, 0][~hidden[i]].tolist() == row
            assert values[i, 0, :, 0][~hidden[i]].tolist() == [-value for value in row]
            assert positions[i] == len(row) - 1
        before = cache.column
        cache.advance()
        moved += cache.column < before
        finished = torch.tensor([len(row) >= 14 or chance.random() < 0.05 for row in rows])
        if finished.any():
            kept = cache.drop(finished)
            rows = [rows[i] for i in kept.tolist()]
            assert len(rows) == cache.active
    assert moved > 3
