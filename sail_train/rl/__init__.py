"""Policy gradients from verifiable rewards.

`rollout` (prompts, engines, what came back) -> `groups` (dynamic sampling, rewards, advantages) -> `batch` (packed
micro batches) -> `objectives` (the loss) -> `updates` (what the training engine steps on); `parity` holds rollout
engine and trainer together.
Tables: `advantage.ADVANTAGES`, `objectives.OBJECTIVES`, `rollout.ENGINES`.
"""
