"""One pre-norm transformer layer over packed patches: attention within each picture, then an MLP.

RMSNorm (float32 inside, epsilon added to the mean square) or LayerNorm; an MLP with a gate, `down(act(gate) * up)`,
or plain, `down(act(up))`; with or without biases; turned by rotary tables where there are any.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from sail_train.config import choice
from sail_train.model.attention import Packing, attend
from sail_train.model.hf_config import SailVLVisionConfig
from sail_train.model.vision.rotary import rotate

_NORMS = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}


def make_norm(config: SailVLVisionConfig) -> nn.Module:
    """The encoder's kind of norm over hidden_size."""
    return choice("vision_config.norm", config.norm, _NORMS)(config.hidden_size, eps=config.norm_eps)


class EncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: SailVLVisionConfig) -> None:
        super().__init__()
        self.heads, self.head_dim, self.gated = config.num_attention_heads, config.head_dim, config.gated_mlp
        size, inner, bias = config.hidden_size, config.intermediate_size, config.bias
        self.norm_attention = make_norm(config)
        self.qkv = nn.Linear(size, 3 * size, bias=bias)
        self.out = nn.Linear(size, size, bias=bias)
        self.norm_mlp = make_norm(config)
        if config.gated_mlp:
            self.gate_up = nn.Linear(size, 2 * inner, bias=bias)
        else:
            self.up = nn.Linear(size, inner, bias=bias)
        self.down = nn.Linear(inner, size, bias=bias)
        self.act = choice("vision_config.hidden_act", config.hidden_act, ACT2FN)

    def forward(self, hidden: Tensor, tables: Tensor | None, packing: Packing) -> Tensor:
        """(P, hidden_size); `tables` (2, P, 1, head_dim) are the rotary cosines and sines, None for none."""
        qkv = self.qkv(self.norm_attention(hidden)).unflatten(-1, (3, self.heads, self.head_dim))
        query_key, value = qkv[:, :2].flatten(1, 2), qkv[:, 2]  # (P, 2 * heads | heads, head_dim)
        if tables is not None:
            query_key = rotate(query_key, tables)
        query, key = query_key.split(self.heads, dim=1)
        attended = attend(query, key, value, packing, scale=self.head_dim**-0.5)
        hidden = hidden + self.out(attended.flatten(1))
        return hidden + self.down(self._inner(self.norm_mlp(hidden)))

    def _inner(self, hidden: Tensor) -> Tensor:
        """(P, intermediate_size)."""
        if not self.gated:
            return self.act(self.up(hidden))
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        return self.act(gate) * up
