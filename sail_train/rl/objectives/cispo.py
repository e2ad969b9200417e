"""CISPO: the ratio is a capped weight without gradient, so that no token loses its gradient to a clip (MiniMax-M1).

Beware of names elsewhere: `clip_ratio_high` is here what may be added to 1 (verl), so 4 caps the weight at 5; TRL's
`epsilon_high` is the cap itself.
"""

from __future__ import annotations

from torch import Tensor

from sail_train.rl.batch import PolicyBatch
from sail_train.rl.objectives.surrogate import Clip, TokenLoss, log_ratio

DEFAULTS = Clip(low=1.0, high=4.0, loss_agg_mode="token-mean")


def token_loss(logprobs: Tensor, batch: PolicyBatch, clip: Clip) -> TokenLoss:
    ratio = log_ratio(logprobs.detach(), batch.old_logprobs).exp()
    weight = ratio.clamp(1 - clip.low, 1 + clip.high)
    return TokenLoss(values=-weight * batch.advantages * logprobs, ratio=ratio, clipped=weight != ratio)
