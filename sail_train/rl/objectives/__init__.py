"""The loss of an update: an objective per token, summed as the aggregation says.

An objective is one module with `DEFAULTS: Clip` and `token_loss(logprobs, batch, clip) -> TokenLoss`, and one line
here. `objective.Objective` makes it the loss that the engine calls.
"""

OBJECTIVES = {
    "cispo": "sail_train.rl.objectives.cispo",
    "dapo": "sail_train.rl.objectives.dapo",
    "gspo": "sail_train.rl.objectives.gspo",
}
"""Objectives by name, as modules."""
