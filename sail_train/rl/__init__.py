"""Policy gradients: rollouts, advantages, objectives."""
