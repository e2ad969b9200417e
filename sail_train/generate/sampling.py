"""From logits to tokens: one uniform number per token, drawn before anything runs.

`uniforms` (per request, keyed) -> `log_distribution` (temperature, fp32) -> `truncate` (top-k, top-p) -> `pick`
(inverse CDF); `draw` is the last three in one. A request's numbers depend on its seed, uid and index alone, so a
completion does not change with the batch it is decoded in, its neighbours or its rank, beyond rounding of the logits.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from sail_train.types import Sampling


def uniforms(seed: int, uid: str, index: int, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1) for completion `index` of the prompt `uid`; a longer draw begins with a short one."""
    digest = hashlib.blake2b(f"{seed}\0{index}\0{uid}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def log_distribution(logits: Tensor, temperature: float) -> Tensor:
    """(B, V) float32 log-probs of the scaled distribution; at temperature 0 those of the unscaled one."""
    scaled = logits.float()
    if temperature > 0:
        scaled = scaled / temperature
    return torch.log_softmax(scaled, dim=-1)


def truncate(logprobs: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Renormalised log-probs of the `top_k` likeliest tokens, and of the fewest whose mass reaches `top_p`."""
    if 0 < top_k < logprobs.shape[-1]:
        floor = logprobs.topk(top_k, dim=-1).values[:, -1:]  # (B, 1)
        logprobs = logprobs.masked_fill(logprobs < floor, -torch.inf)
    if top_p < 1:
        ranked, order = logprobs.sort(dim=-1, descending=True, stable=True)
        before = ranked.exp().cumsum(dim=-1) - ranked.exp()  # (B, V) mass of likelier tokens; 0 keeps the first
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logprobs = logprobs.masked_fill(dropped, -torch.inf)
    return torch.log_softmax(logprobs, dim=-1)


def pick(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """(B,) token whose stretch of the cumulative distribution holds `uniform` (B,); impossible tokens have none."""
    cumulative = logprobs.double().exp().cumsum(dim=-1)  # (B, V)
    point = uniform.to(cumulative).unsqueeze(-1) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, point, right=True).squeeze(-1)  # (B,)
    return token.clamp_(max=logprobs.shape[-1] - 1)


def draw(logits: Tensor, sampling: Sampling, *, banned: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """((B,) token, (B,) float32 log-prob) of logits (B, V), without the tokens `banned`; greedy without `uniform` (B,).

    The log-probs are those of the whole distribution, unless it was truncated: what a training forward computes.
    """
    full = log_distribution(logits, sampling.temperature)  # (B, V)
    allowed = full.index_fill(-1, banned, -torch.inf)
    if uniform is None:
        token, recorded = allowed.argmax(dim=-1), full
    else:
        recorded = full
        if sampling.top_k > 0 or sampling.top_p < 1:
            allowed = recorded = truncate(allowed, top_k=sampling.top_k, top_p=sampling.top_p)
        token = pick(allowed, uniform)
    return token, recorded.gather(-1, token[:, None])[:, 0]
