"""Conversations and images to token ids and patches: the one path for training, evaluation, RL and inference."""
