"""The output layer, which can give the log-probs of chosen tokens without keeping all logits.

It is the language model's `lm_head` and still a linear layer to transformers and DeepSpeed. Called with targets,
it works in chunks, recomputed in the backward pass when there are several, all inside one module call: under
ZeRO 3 each call gathers the weight on every rank, and ranks differ in how many targets they have.
The image token is never offered: a model that draws it, as an untrained one does, would have written an image that
nobody can show it, and its own completion could not be read back.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_CHUNK_ELEMENTS = 2**26
"""Logits held at a time: 256 MiB in fp32."""

_NEVER = -1e4
"""Logit whose probability is exactly 0; finite, so that 0 x log 0 in an entropy is 0."""


class OutputHead(nn.Linear):
    def __init__(self, hidden_size: int, vocabulary: int, *, never: int, bias: bool = False) -> None:
        """`never` is the token that is not to be drawn."""
        super().__init__(hidden_size, vocabulary, bias=bias)
        self.never = never

    def forward(  # type: ignore[override]
        self, hidden: Tensor, targets: Tensor | None = None, *, temperature: float = 1.0, entropy: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Logits; with `targets` (N,) for hidden (N, H): fp32 (N,) log-probs and, if asked for, entropies."""
        if targets is None:
            return self._logits(hidden)
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

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = super().forward(hidden)
        with torch.no_grad():  # exact: the softmax passes no gradient to a probability of 0
            logits[..., self.never] = _NEVER
        return logits

    def _score(
        self, hidden: Tensor, targets: Tensor, *, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        logits = self._logits(hidden).float() / temperature  # (N, vocabulary)
        log_all = logits.log_softmax(-1)
        logprobs = log_all.gather(-1, targets[:, None])[:, 0]
        return logprobs, -(log_all.exp() * log_all).sum(-1) if entropy else None
