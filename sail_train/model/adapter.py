"""Reduction and MLP: each square of `merge_size` squared patch features -> one token of the language model.

LayerNorm, Linear, GELU, Linear over the square's features side by side ("pixel_shuffle": SAIL-VL2, arXiv 2509.14033,
section 2.1) or over their mean ("avg_pool": Seed1.5-VL, arXiv 2505.07062, section 2). Patches stand in merge-block
order, so that the pixel shuffle is a reshape: (row in the square, column in the square, channel), which is the order
of InternVL's second version of it and therefore of the released weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from sail_train.config import choice
from sail_train.model.config import REDUCTIONS


class Adapter(nn.Module):
    def __init__(
        self,
        vision_size: int,
        merge_size: int,
        hidden_size: int,
        language_size: int,
        *,
        reduction: str = "pixel_shuffle",
    ) -> None:
        super().__init__()
        choice("reduction", reduction, REDUCTIONS)
        self.square, self.pools = merge_size**2, reduction == "avg_pool"
        self.merged_size = vision_size if self.pools else vision_size * self.square
        self.norm = nn.LayerNorm(self.merged_size)
        self.up = nn.Linear(self.merged_size, hidden_size)
        self.act = nn.GELU()
        self.down = nn.Linear(hidden_size, language_size)

    def forward(self, features: Tensor) -> Tensor:
        """(P / merge_size^2, language_size) tokens of (P, vision_size) features."""
        merged = features.unflatten(0, (-1, self.square))  # (tokens, merge_size^2, vision_size)
        merged = merged.mean(1) if self.pools else merged.flatten(1)
        return self.down(self.act(self.up(self.norm(merged))))
