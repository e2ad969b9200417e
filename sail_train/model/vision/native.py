"""Native-resolution vision transformer: patches of all images in one sequence -> one feature per patch.

Images of any number and size: bytes are normalised, embedded linearly, turned by a two-dimensional rotary
embedding (half of each head's pairs by row, half by column; no learned positions, so no largest size), and attend
within their image. Pre-norm blocks with RMSNorm and SwiGLU. Patches come and features go in merge-block order
(`visual.ImageSpec`).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.modeling_layers import GradientCheckpointingLayer

from sail_train.model.attention import Packing, attend
from sail_train.model.hf_config import SailVLVisionConfig
from sail_train.model.vision import Grids



class NativeEncoder(nn.Module):
    def __init__(self, config: SailVLVisionConfig, merge_size: int) -> None:
        super().__init__()
        self.config, self.merge_size = config, merge_size
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.layers = nn.ModuleList(NativeLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, patches: Tensor, grids: Grids) -> Tensor:
        """(P, hidden_size) features of (P, patch_dim) uint8 patches."""
        lengths = [rows * cols for rows, cols in grids]
        packing = Packing.plan(lengths, causal=False, device=patches.device)
        tables = _rope_tables(grids, self.merge_size, self.config.head_dim, self.config.rope_theta, patches.device)
        if packing.index is not None:  # once here instead of in each layer: equal images side by side
            patches, tables = patches[packing.index], tables[:, packing.index]
            in_order = Packing.plan(sorted(lengths, reverse=True), causal=False, device=patches.device)
        else:
            in_order = packing
        weight = self.patch_embedding.weight
        hidden = self.patch_embedding(self._normalise(patches).to(weight.dtype))  # (P, hidden_size)
        tables = tables.to(hidden.dtype)[:, :, None]  # (2, P, 1, head_dim)
        for layer in self.layers:
            hidden = layer(hidden, tables, in_order)
        hidden = self.norm(hidden)
        return hidden if packing.inverse is None else hidden[packing.inverse]

    def _normalise(self, patches: Tensor) -> Tensor:
        scale, shift = _normalisation(
            tuple(self.config.image_mean), tuple(self.config.image_std), self.config.patch_size, patches.device
        )
        return torch.addcmul(shift, patches.float(), scale)


class NativeLayer(GradientCheckpointingLayer):
    def __init__(self, config: SailVLVisionConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        size, inner = config.hidden_size, config.intermediate_size
        self.norm_attention = nn.RMSNorm(size, eps=config.norm_eps)
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(size, size, bias=False)
        self.norm_mlp = nn.RMSNorm(size, eps=config.norm_eps)
        self.gate_up = nn.Linear(size, 2 * inner, bias=False)
        self.down = nn.Linear(inner, size, bias=False)

    def forward(self, hidden: Tensor, tables: Tensor, packing: Packing) -> Tensor:
        """(P, hidden_size); `tables` (2, P, 1, head_dim) are the rotary cosines and sines."""
        qkv = self.qkv(self.norm_attention(hidden)).unflatten(-1, (3, self.heads, self.head_dim))
        query_key, value = rotate(qkv[:, :2].flatten(1, 2), tables), qkv[:, 2]  # (P, 2 * heads | heads, head_dim)
        query, key = query_key.split(self.heads, dim=1)
        attended = attend(query, key, value, packing, scale=self.head_dim**-0.5)
        hidden = hidden + self.out(attended.flatten(1))
        gate, up = self.gate_up(self.norm_mlp(hidden)).chunk(2, dim=-1)
        return hidden + self.down(silu(gate) * up)


def rotate(x: Tensor, tables: Tensor) -> Tensor:
    """Rotary embedding of (P, heads, head_dim): the pair (i, i + head_dim / 2) turns by its table's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * tables[0] + torch.cat((-second, first), dim=-1) * tables[1]


def patch_positions(rows: int, cols: int, merge: int) -> Tensor:
    """(rows * cols, 2) row and column of each patch, in merge-block order."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"), dim=-1)
    blocks = grid.view(rows // merge, merge, cols // merge, merge, 2)
    return blocks.transpose(1, 2).reshape(rows * cols, 2)


@lru_cache(maxsize=512)
def _rope_table(rows: int, cols: int, merge: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """(2, rows * cols, head_dim) cosines and sines of one image."""
    frequencies = theta ** -(torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))  # (head_dim / 4,)
    angles = patch_positions(rows, cols, merge).float()[:, :, None] * frequencies  # (P, 2, head_dim / 4)
    angles = angles.flatten(1).repeat(1, 2)  # (P, head_dim): rows, columns, rows, columns
    return torch.stack((angles.cos(), angles.sin())).to(device)


@lru_cache(maxsize=16)
def _rope_tables(grids: Grids, merge: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """(2, P, head_dim) of all images; the last grid sets are kept, since batches repeat them."""
    return torch.cat([_rope_table(rows, cols, merge, head_dim, theta, device) for rows, cols in grids], dim=1)


@lru_cache(maxsize=8)
def _normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], side: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(patch_dim,) scale and shift that take bytes to normalised values; not buffers, which bf16 would round."""
    scale = 1 / (255 * torch.tensor(std))
    shift = -torch.tensor(mean) / torch.tensor(std)
    return scale.repeat_interleave(side**2).to(device), shift.repeat_interleave(side**2).to(device)
