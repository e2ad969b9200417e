"""Parameters shared out over ranks from the start: under ZeRO 3 no rank ever has the whole model.

a module whose parameters are on the meta device -> one parameter after the other is allocated, in the engine's
precision, and cut into the ranks' shares by DeepSpeed's own zero.Init -> `write` fills it: every rank is given the same
values and keeps its own elements, so that nothing is gathered and nothing sent. DeepSpeed's engine takes such
parameters as they are. Host memory: a rank's share and the largest tensor.
zero.Init is not used as a context: there it replaces torch's constructors, and rotary frequencies are made in bf16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from sail_train import dist
from sail_train.engine import gather, setup
from sail_train.engine.config import EngineConfig


class Partitioned:
    """A `model.placement.Placement` under ZeRO 3. Made and used by all ranks together."""

    shared = True

    def __init__(self, config: EngineConfig) -> None:
        assert config.zero_stage == 3, "other stages keep whole weights on every rank"
        setup.join(config)
        self._settings = setup.deepspeed_config(config, accumulation=1)
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32

    def settle(self, module: torch.nn.Module) -> None:
        """Replaces parameters on the meta device by shares, tied ones by the same."""
        import deepspeed

        made: dict[torch.nn.Parameter, Any] = {}
        first: Any = None
        for child in module.modules():
            for name, parameter in child._parameters.items():
                if parameter is None:
                    continue
                if parameter not in made:
                    fresh: Any = self._allocated(parameter)
                    if first is None:  # as DeepSpeed's engine does it: one Init, the others through its parameter
                        deepspeed.zero.Init(module=_Holder(fresh), config_dict_or_path=self._settings, dtype=self.dtype)
                        first = fresh
                    else:
                        first.convert_to_zero_parameters(param_list=[fresh])
                    made[parameter] = fresh
                child._parameters[name] = made[parameter]
        assert not any(buffer.is_meta for buffer in module.buffers()), "a buffer was computed from a parameter"

    def _allocated(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        values = torch.empty(parameter.shape, dtype=self.dtype, device=dist.device())
        fresh = torch.nn.Parameter(values, requires_grad=parameter.requires_grad)
        fresh.__dict__.update(parameter.__dict__)
        return fresh

    def shape(self, parameter: torch.nn.Parameter) -> torch.Size:
        return gather.whole_shape(parameter)

    def write(self, parameter: Any, values: torch.Tensor, start: int = 0) -> None:
        """Copies those of `values` that are in this rank's share."""
        flat, share = values.detach().reshape(-1), parameter.ds_tensor
        first = dist.rank() * share.ds_numel
        low, high = max(start, first), min(start + len(flat), first + share.ds_numel)
        if low < high:
            share.view(-1)[low - first : high - first].copy_(flat[low - start : high - start])

    def whole(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        return gather.gathered(module)


class _Holder(torch.nn.Module):
    """One parameter, in the form that zero.Init takes."""

    def __init__(self, parameter: torch.nn.Parameter) -> None:
        super().__init__()
        self.parameter = parameter
