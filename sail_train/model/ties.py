"""Weights that a folder holds twice where the module has one: an output layer that is the input embedding.

Equal, the second is passed over. Different, the folder was trained without the tie, whatever its config says, and
dropping either would make another model of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn


def without_ties(
    module: nn.Module, weights: Iterable[tuple[str, Tensor]], folder: Path
) -> Iterator[tuple[str, Tensor]]:
    """The weights but for those that the module knows by another name; ValueError if one differs from that.

    Of each pair the first to come is held until the second does.
    """
    first: dict[int, str] = {}
    owners: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners[name] = first.setdefault(id(parameter), name)
    tied = {owner for name, owner in owners.items() if owner != name}
    seen: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in weights:
        owner = owners.get(name, name)
        if owner in tied and (other := seen.setdefault(owner, (name, tensor)))[0] != name:
            if not torch.equal(other[1], tensor):
                second = name if name != owner else other[0]
                raise ValueError(
                    f"{folder}: {_module(second)} differs from {_module(owner)}; "
                    "set model.language.tie_word_embeddings=false"
                )
        if owner == name:
            yield name, tensor


def _module(name: str) -> str:
    """ "lm_head" of "lm_head.weight", "embed_tokens" of "model.embed_tokens.weight"."""
    return name.split(".")[-2]
