"""DAPO: PPO's clipped surrogate per token, with more room above than below and a dual clip, averaged over tokens.

Yu et al. 2025, equation 8; with equal bounds it is PPO's and GRPO's. No KL term unless the config gives one.
"""

from __future__ import annotations

from torch import Tensor

from sail_train.rl.batch import PolicyBatch
from sail_train.rl.objectives.surrogate import Clip, TokenLoss, clipped_surrogate, log_ratio

DEFAULTS = Clip(low=0.2, high=0.28, c=3.0, loss_agg_mode="token-mean")


def token_loss(logprobs: Tensor, batch: PolicyBatch, clip: Clip) -> TokenLoss:
    return clipped_surrogate(log_ratio(logprobs, batch.old_logprobs).exp(), batch.advantages, clip)
