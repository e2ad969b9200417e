"""Conversations, images and videos to token ids and patches: the one path for training, evaluation, RL and
inference."""

from sail_train.processor.style import STYLES

__all__ = ["STYLES"]
