"""Random weights and added rows, from a generator that depends on the seed and the part alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sail_train.model.language import TESTED
from sail_train.model.placement import HOST, Placement
from sail_train.model.vision.foreign import ForeignEncoder
from sail_train.model.vision.positions import LearnedPositions


def part_generator(seed: int, part: str) -> torch.Generator:
    """A generator for one part: it does not move when another part is loaded instead of drawn."""
    digest = hashlib.blake2b(f"{seed}/{part}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draws_itself(module: nn.Module) -> bool:
    """Whether only transformers knows what the part starts as: then it is drawn whole."""
    if isinstance(module, PreTrainedModel):
        return module.config.model_type not in TESTED
    return isinstance(module, ForeignEncoder)


def initialise(module: nn.Module, *, std: float, generator: torch.Generator, placement: Placement = HOST) -> None:
    """Normal weights of `std`, zero biases, norms of one; from `generator` alone, written through `placement`.

    A table of positions starts as sinusoids. A language model of another architecture than those tested knows best
    what its parameters start as (a norm whose weight is added to one, an attention sink): it draws them itself, from
    the same generator. So does a vision model of transformers.
    """
    if draws_itself(module):
        assert not placement.shared, "a part that draws itself is built whole and handed over"
        _by_itself(module.model if isinstance(module, ForeignEncoder) else module, generator)  # type: ignore[arg-type]
        return
    done: set[int] = set()
    for child in module.modules():
        if isinstance(child, LearnedPositions):
            placement.write(child.table, child.sinusoids())
            continue
        for name, parameter in child.named_parameters(recurse=False):
            if id(parameter) in done:
                continue
            done.add(id(parameter))
            placement.write(parameter, _drawn(name, placement.shape(parameter), std, generator))


def _drawn(name: str, shape: torch.Size, std: float, generator: torch.Generator) -> Tensor:
    """The whole of a parameter in fp32, on the host: the same bits wherever its elements go."""
    if name == "bias":
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.empty(shape).normal_(std=std, generator=generator)


def grow(tensor: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """More rows, drawn like the ones there are, so that a new token starts as an average one."""
    if len(tensor) >= rows:
        return tensor
    mean, std = tensor.float().mean(0), tensor.float().std(0)
    noise = torch.randn(rows - len(tensor), *tensor.shape[1:], generator=generator)
    return torch.cat((tensor, (mean + noise * std).to(tensor.dtype)))


def _by_itself(model: PreTrainedModel, generator: torch.Generator) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        for module in model.modules():
            model._init_weights(module)
