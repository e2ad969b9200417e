"""GSPO: one ratio per response, the geometric mean of its tokens', for models whose token ratios are noisy (MoE).

Zheng et al. 2025, in the GSPO-token form: the ratio has the sequence's value and the token's gradient, so that
d loss / d logprob = -s A / length as in the sequence form. Its bounds are hundreds of times tighter than PPO's.
"""

from __future__ import annotations

from torch import Tensor

from sail_train.rl.batch import PolicyBatch
from sail_train.rl.objectives.surrogate import Clip, TokenLoss, clipped_surrogate

DEFAULTS = Clip(low=3e-4, high=4e-4, loss_agg_mode="seq-mean-token-mean")

MAX_LOG_RATIO = 10.0
"""As in verl: a mean over a response is rarely past 1."""


def token_loss(logprobs: Tensor, batch: PolicyBatch, clip: Clip) -> TokenLoss:
    delta = logprobs.detach() - batch.old_logprobs  # (N,)
    sums = delta.new_zeros(len(batch.lengths)).index_add_(0, batch.sequence, delta)  # (num_sequences,)
    mean = (sums / batch.lengths.clamp(min=1))[batch.sequence]  # (N,)
    # The clamp holds back the value alone: gradient flows through the term that is zero.
    ratio = (logprobs - logprobs.detach() + mean.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)).exp()
    return clipped_surrogate(ratio, batch.advantages, clip)
