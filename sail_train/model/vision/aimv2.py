"""SAIL-ViT, which is AIMv2 (arXiv 2411.14402): patches -> RMSNorm -> + learned positions -> layers -> RMSNorm.

RMSNorm and SwiGLU without biases, no class token: 682,031,616 parameters at AIMv2-Huge's sizes. Fixed 448 x 448
tiles read the table of positions as it is; the AnyRes models (SAIL-VL2, arXiv 2509.14033, section 2.1) resample it
to the shape of each picture (`positions`).
"""

from __future__ import annotations

from torch import Tensor

from sail_train.model.hf_config import SailVLVisionConfig
from sail_train.model.vision import Grids
from sail_train.model.vision.encoder import PackedEncoder
from sail_train.model.vision.layer import make_norm
from sail_train.model.vision.positions import LearnedPositions


class Aimv2Encoder(PackedEncoder):
    def __init__(self, config: SailVLVisionConfig, merge_size: int, *, attention: str = "auto") -> None:
        super().__init__(config, merge_size, attention=attention)
        self.patch_norm = make_norm(config)
        self.positions = LearnedPositions(
            config.position_grid, config.hidden_size, merge_size, base=config.rope_theta
        )  # fmt: skip

    def embed(self, patches: Tensor, grids: Grids) -> Tensor:
        hidden = self.patch_norm(self.patch_embedding(patches))
        return hidden + self.positions(grids).to(hidden.dtype)

    def tables(self, grids: Grids, hidden: Tensor) -> None:
        return None
