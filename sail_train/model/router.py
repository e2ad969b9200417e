"""What the routers of a mixture of experts do: how many tokens each expert gets, and the loss that balances them.

router's logits, caught by a hook -> counts of tokens sent to each expert, and sums of the probabilities with which
they might have been, through which gradients flow -> the balance loss of Switch Transformers (arXiv 2101.03961,
equations 4 to 6), layer by layer. Under activation checkpointing a router is called again in the backward pass: the
hook does the same work, as recomputation must, but only calls inside `collect` count, and the backward is outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.output_capturing import OutputRecorder


@dataclass(kw_only=True)
class Routed:
    """What the routers did in one forward pass of T tokens; L layers have E experts each."""

    counts: list[Tensor] = field(default_factory=list)
    """(E,) float64 of each layer: tokens that were sent to each expert, k T in sum."""
    probabilities: list[Tensor] = field(default_factory=list)
    """(E,) fp32 of each layer: the tokens' probabilities of each expert, summed; T in sum."""


class Routers:
    """The routers of a language model, watched from `__init__` to `close`."""

    def __init__(self, language: Any) -> None:
        """ValueError if it has experts, but no router that can be watched."""
        found = dict(_routers(language))
        if not found and language.config.to_dict().get("num_experts_per_tok"):
            raise ValueError(
                f"language.model_type={language.config.model_type!r} has experts, but its routers cannot be watched, "
                "and their load not be balanced; use another, e.g. qwen3_moe"
            )
        self.layers = [_layer(name) for name in found]
        """Numbers of the layers that have experts."""
        self._routers = [router for router, _ in found.values()]
        self._hooks = [router.register_forward_hook(self._hook(language, index)) for router, index in found.values()]
        self._open: Routed | None = None

    def __bool__(self) -> bool:
        return bool(self.layers)

    @property
    def trained(self) -> bool:
        """Whether the routers themselves train: if not, no loss can move a token to another expert."""
        return any(parameter.requires_grad for router in self._routers for parameter in router.parameters())

    @contextmanager
    def collect(self) -> Iterator[Routed]:
        """Within, what the routers do in one forward pass of the model is added to what it yields."""
        self._open = routed = Routed()
        try:
            yield routed
        finally:
            self._open = None
        assert len(routed.counts) == len(self.layers), "every router is called once in a forward pass"

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, language: Any, index: int) -> Any:
        top_k = language.config.num_experts_per_tok

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if not torch.is_grad_enabled():  # generation, evaluation
                return
            logits, chosen = _outputs(output, index, top_k)
            probabilities = logits.float().softmax(-1).sum(0)
            if self._open is not None:
                self._open.probabilities.append(probabilities)
                self._open.counts.append(_counted(chosen, logits.shape[-1]))

        return hook


def expert_blocks(language: Any) -> list[nn.Module]:
    """The modules that hold a router and its experts, one for each layer that has them."""
    return [language.get_submodule(name.rpartition(".")[0]) for name, _ in _routers(language)]


def balance_loss(load: Tensor, probabilities: Tensor) -> Tensor:
    """E x the sum over experts of f_e P_e, as a mean over layers: top-k if the load is even, more if it is not.

    Args:
        load: (L, E), f_e: tokens sent to expert e per token, top-k in sum.
        probabilities: (L, E), P_e: mean probability of expert e.
    """
    return load.shape[-1] * (load * probabilities).sum(-1).mean()


def load_max(load: Tensor) -> Tensor:
    """(L,) load of the busiest expert over the mean load; 1 if it is even."""
    return load.amax(-1) / load.mean(-1)


def load_entropy(load: Tensor) -> Tensor:
    """(L,) entropy of the load over its largest value: 1 if it is even, 0 if one expert gets all."""
    share = load / load.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1) / torch.tensor(float(load.shape[-1])).log()


def _routers(language: Any) -> Iterator[tuple[str, tuple[nn.Module, int]]]:
    """Name of each router, the module, and which of its outputs are the logits: as transformers itself records them."""
    recorded = (language._can_record_outputs or {}).get("router_logits")
    if not isinstance(recorded, OutputRecorder):
        return
    for name, module in language.named_modules():
        if isinstance(module, recorded.target_class):
            yield name, (module, recorded.index)


def _layer(name: str) -> int:
    numbers = re.findall(r"\.(\d+)\.", name)
    assert numbers, f"router {name} stands in no layer"
    return int(numbers[0])


@torch.no_grad()
def _counted(chosen: Tensor, experts: int) -> Tensor:
    """(E,) how often each expert was chosen; bincount would wait for the device."""
    flat = chosen.flatten()
    ones = torch.ones(len(flat), dtype=torch.float64, device=flat.device)
    return torch.zeros(experts, dtype=torch.float64, device=flat.device).scatter_add_(0, flat, ones)


def _outputs(output: Any, index: int, top_k: int) -> tuple[Tensor, Tensor]:
    """(T, E) logits of a router's output, and the (T, k) experts that it chose."""
    if isinstance(output, Tensor):
        return output, output.topk(top_k, dim=-1).indices
    logits = output[index]
    chosen = next((each for each in output if not each.is_floating_point()), None)
    return logits, logits.topk(top_k, dim=-1).indices if chosen is None else chosen
