"""Policy gradients from verifiable rewards.

`rollout` (prompts, engines, what came back) -> `groups` (dynamic sampling, rewards, advantages) -> `batch` (packed
micro batches) -> `objectives` (the loss of an update); `parity` holds rollout engine and trainer together.
Tables: `advantage.ADVANTAGES`, `objectives.OBJECTIVES`, `rollout.ENGINES`.
"""
