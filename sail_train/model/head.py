"""The output layer, which can give the log-probs of chosen tokens without keeping all logits.

It is the language model's `lm_head` and still a linear layer to transformers and DeepSpeed. Called with targets,
it works in chunks, recomputed in the backward pass when there are several, all inside one module call: under
ZeRO 3 each call gathers the weight on every rank, and ranks differ in how many targets they have.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_CHUNK_ELEMENTS = 2**26
"""Logits held at a time: 256 MiB in fp32."""


class OutputHead(nn.Linear):
    def forward(  # type: ignore[override]
        self, hidden: Tensor, targets: Tensor | None = None, *, temperature: float = 1.0, entropy: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Logits; with `targets` (N,) for hidden (N, H): fp32 (N,) log-probs and, if asked for, entropies."""
        if targets is None:
            return super().forward(hidden)
        rows = max(1, _CHUNK_ELEMENTS // self.out_features)
        score = partial(self._score, temperature=temperature, entropy=entropy)
        if len(targets) <= rows:
            return score(hidden, targets)
        parts = [
            checkpoint(score, *chunk, use_reentrant=False)
            for chunk in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies) if entropy else None

    def _score(
        self, hidden: Tensor, targets: Tensor, *, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        logits = super().forward(hidden).float() / temperature  # (N, vocabulary)
        log_all = logits.log_softmax(-1)
        logprobs = log_all.gather(-1, targets[:, None])[:, 0]
        return logprobs, -(log_all.exp() * log_all).sum(-1) if entropy else None
