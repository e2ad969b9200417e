"""Native-resolution vision transformer: a patch's place is a two-dimensional rotary embedding (`rotary`).

By default RMSNorm and SwiGLU; as Seed-ViT (Seed1.5-VL, arXiv 2505.07062, section 2.1.1 and table 1) LayerNorm,
plain MLPs and biases, without a final norm: 532,044,800 parameters.
"""

from __future__ import annotations

from torch import Tensor

from sail_train.model.vision import Grids
from sail_train.model.vision.encoder import PackedEncoder
from sail_train.model.vision.rotary import rope_tables


class NativeEncoder(PackedEncoder):
    def embed(self, patches: Tensor, grids: Grids) -> Tensor:
        return self.patch_embedding(patches)

    def tables(self, grids: Grids, hidden: Tensor) -> Tensor:
        tables = rope_tables(grids, self.merge_size, self.config.head_dim, self.config.rope_theta, hidden.device)
        return tables.to(hidden.dtype)[:, :, None]
