"""Where the elements of a model's parameters are while it is built: all of them on every rank, or a share on each.

modules register parameters that have shapes and no memory (`on_meta`) -> a placement settles them -> whoever draws or
reads a weight writes it through the placement, tensor by tensor -> `hand_over` for what can only be made whole.
`HOST` is the ordinary way, whole parameters in host memory; the one that shares them out (ZeRO 3) is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Placement(Protocol):
    """What building a model asks of it. All ranks build the same model, in the same order."""

    shared: bool
    """Whether a rank holds a share of each parameter; such a model is constructed on the meta device."""

    def settle(self, module: nn.Module) -> None:
        """Gives parameters that are on the meta device their memory; what is in it is not defined."""

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """Of the whole parameter."""

    def write(self, parameter: nn.Parameter, values: Tensor, start: int = 0) -> None:
        """Puts `values`, in order, from element `start` of the flattened parameter on; the same on every rank."""

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        """Within, every rank has all elements of the module's parameters, to be read. All ranks enter together."""


class Host:
    """Whole parameters, in the memory that constructing them took."""

    shared = False

    def settle(self, module: nn.Module) -> None:
        pass

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        return parameter.shape

    def write(self, parameter: nn.Parameter, values: Tensor, start: int = 0) -> None:
        flat = values.detach().reshape(-1)
        parameter.data.view(-1)[start : start + len(flat)].copy_(flat)

    def whole(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()


HOST = Host()


@contextmanager
def on_meta() -> Iterator[None]:
    """Within, parameters get shapes and no memory; buffers are computed as ever, in the precision they ask for.

    `torch.device("meta")` would leave rotary frequencies without values, DeepSpeed's own context would round them.
    """
    register = nn.Module.register_parameter

    def shapes_alone(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            attributes = parameter.__dict__
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
            parameter.__dict__.update(attributes)
        register(module, name, parameter)

    nn.Module.register_parameter = shapes_alone  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def hand_over(source: Any, target: Any, placement: Placement) -> None:
    """Writes the whole parameters of `source` into those of `target`, a module of the same make; buffers move over."""
    for name, parameter in source.named_parameters():
        placement.write(target.get_parameter(name), parameter)
    for name, module in source.named_modules():
        target.get_submodule(name)._buffers.update(module._buffers)
