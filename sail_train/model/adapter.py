"""Pixel shuffle and MLP: each square of `merge_size` squared patch features -> one token of the language model.

The two-layer MLP of SAIL-VL2 (arXiv 2509.14033, section 2.1): LayerNorm, Linear, GELU, Linear. Patches stand in
merge-block order, so that the pixel shuffle is a reshape.
"""

from __future__ import annotations

from torch import Tensor, nn


class Adapter(nn.Module):
    def __init__(self, vision_size: int, merge_size: int, hidden_size: int, language_size: int) -> None:
        super().__init__()
        self.merged_size = vision_size * merge_size**2
        self.norm = nn.LayerNorm(self.merged_size)
        self.up = nn.Linear(self.merged_size, hidden_size)
        self.act = nn.GELU()
        self.down = nn.Linear(hidden_size, language_size)

    def forward(self, features: Tensor) -> Tensor:
        """(P / merge_size^2, language_size) tokens of (P, vision_size) features."""
        return self.down(self.act(self.up(self.norm(features.view(-1, self.merged_size)))))
