"""FLOPs and bytes from plain shapes: for dealing rows over ranks, for MFU, and for planning before a GPU is touched.

A row is lengths of its samples in tokens and of its pictures (images, tiles, frames) in patches. The conventions:

- a multiplication and an addition are two operations; a forward costs 2 for each weight and token;
- attention costs, for scores and weighted values, 2 x 2 x heads x head_dim for each pair of positions of one sample
  or one picture: length squared, half of it where causal, since the other half need not be computed. Counts that
  take the full square of causal samples, as PaLM's (arXiv 2204.02311, appendix B), come out higher;
- a backward costs a forward for the gradients of weights, where they train, and one for those of inputs, where
  anything trains at them or before; attention has no weights, and costs two forwards where gradients pass;
- of experts those count that a token goes through; logits where they are computed;
- recomputation does not count: MFU is about the model's FLOPs. Norms, softmax, rotary embedding, the resampling of
  learned positions and the embedding's look-up are left out as negligible.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 FLOP/s by a piece of the device's name; the first that fits counts."""

PARTS = ("vision", "adapter", "language")
"""In the order of the forward."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by its name; None if it is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A stack of transformer layers, dense or a mixture of experts."""

    layers: int
    hidden: int
    intermediate: int
    """Width of the MLP, or of one expert."""
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    gated: bool = True
    """Whether an MLP has a gate (three matrices) or is plain (two)."""
    experts: int = 1
    active_experts: int = 1
    """Experts that each token goes through."""

    @property
    def attention_weights(self) -> int:
        """Of one layer."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def mlp_weights(self) -> int:
        """Of one MLP, or of one expert."""
        return (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def router_weights(self) -> int:
        """Of one layer."""
        return self.hidden * self.experts if self.experts > 1 else 0

    @property
    def weights(self) -> int:
        """Matrix elements of all layers."""
        return self.layers * (self.attention_weights + self.router_weights + self.mlp_weights * self.experts)

    @property
    def active_weights(self) -> int:
        """Matrix elements that each token meets."""
        return self.layers * (self.attention_weights + self.router_weights + self.mlp_weights * self.active_experts)

    def matrix_flops(self, lengths: Sequence[int]) -> float:
        """Forward FLOPs of the weights."""
        return 2.0 * self.active_weights * sum(lengths)

    def attention_flops(self, lengths: Sequence[int]) -> float:
        """Forward FLOPs of scores and weighted values, of sequences that do not see each other."""
        pairs = sum(length * length for length in lengths) * (0.5 if self.causal else 1.0)
        return 4.0 * self.layers * self.heads * self.head_dim * pairs

    def forward_flops(self, lengths: Sequence[int]) -> float:
        """Of sequences that do not see each other."""
        return self.matrix_flops(lengths) + self.attention_flops(lengths)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Forward FLOPs of one part, by what their backward costs."""

    first: float = 0.0
    """Of weights whose inputs are data, and need no gradient."""
    matrices: float
    """Of weights behind others."""
    attention: float = 0.0

    @property
    def forward(self) -> float:
        return self.first + self.matrices + self.attention

    def train(self, *, trains: bool, flows: bool) -> float:
        """Forward and backward; `flows`: whether anything trains in this part or before it."""
        return self.first * (1 + trains) + self.matrices * (1 + trains + flows) + self.attention * (1 + 2 * flows)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The three parts of a model."""

    vision: Tower
    patch_dim: int
    """Values of one patch."""
    merge: int
    """Patches that become one token."""
    adapter_hidden: int
    pools: bool = False
    """Whether the adapter averages the merged patches, or puts them side by side."""
    language: Tower
    vocab: int
    tied: bool
    """Whether input and output embedding are one matrix."""

    @property
    def weights(self) -> dict[str, int]:
        """Matrix elements of each part; vectors (norms, biases) and learned positions are left out."""
        merged = self.vision.hidden * (1 if self.pools else self.merge)
        return {
            "vision": self.vision.weights + self.patch_dim * self.vision.hidden,
            "adapter": merged * self.adapter_hidden + self.adapter_hidden * self.language.hidden,
            "language": self.language.weights + self.vocab * self.language.hidden * (1 if self.tied else 2),
        }

    def forward_flops(
        self, lengths: Sequence[int], patches: Sequence[int], *, num_trained: int | None = None
    ) -> dict[str, float]:
        """Of one row, by part.

        Args:
            lengths: tokens of each sample.
            patches: patches of each picture.
            num_trained: positions at which logits are computed; all of them if None.
        """
        return {part: work.forward for part, work in self._work(lengths, patches, num_trained).items()}

    def train_flops(
        self,
        lengths: Sequence[int],
        patches: Sequence[int],
        *,
        trained: Collection[str] = PARTS,
        num_trained: int | None = None,
    ) -> float:
        """Forward and backward of one row, with `trained` parts; the others are frozen."""
        return sum(self.train_flops_by_part(lengths, patches, trained=trained, num_trained=num_trained).values())

    def train_flops_by_part(
        self,
        lengths: Sequence[int],
        patches: Sequence[int],
        *,
        trained: Collection[str] = PARTS,
        num_trained: int | None = None,
    ) -> dict[str, float]:
        """The same by part."""
        flops, flows = {}, False
        for part, work in self._work(lengths, patches, num_trained).items():
            flows = flows or part in trained
            flops[part] = work.train(trains=part in trained, flows=flows)
        return flops

    def _work(self, lengths: Sequence[int], patches: Sequence[int], num_trained: int | None) -> dict[str, Work]:
        logits = sum(lengths) if num_trained is None else num_trained
        return {
            "vision": Work(
                first=2.0 * self.patch_dim * self.vision.hidden * sum(patches),
                matrices=self.vision.matrix_flops(patches),
                attention=self.vision.attention_flops(patches),
            ),
            # its norm stands before its weights, so that their inputs need gradients where it trains alone
            "adapter": Work(matrices=2.0 * self.weights["adapter"] * sum(patches) / self.merge),
            "language": Work(
                matrices=self.language.matrix_flops(lengths) + 2.0 * self.vocab * self.language.hidden * logits,
                attention=self.language.attention_flops(lengths),
            ),
        }


def mfu(flops: float, seconds: float, *, num_devices: int, peak: float) -> float:
    """Model FLOPs utilisation, 0..1: what was computed / what the devices could have computed meanwhile."""
    return flops / (seconds * num_devices * peak)


def state_bytes(
    total: int, trained: int, *, zero_stage: int, num_devices: int, bf16: bool, offload_optimizer: bool = False
) -> dict[str, float]:
    """Bytes on one device that do not depend on the batch: "weights", "gradients", "optimizer".

    fp32: weights are their own master copy at ZeRO 0; from 1 on the optimizer has its share of one. bf16: 2-byte
    weights; gradients accumulate in 4 bytes, sharded from ZeRO 2 on. AdamW's moments are 4 bytes each.
    """
    weight_share = num_devices if zero_stage == 3 else 1
    gradient_share = num_devices if zero_stage >= 2 else 1
    optimizer_share = num_devices if zero_stage >= 1 else 1
    optimizer = trained * (8 if zero_stage == 0 else 12) / optimizer_share
    return {
        "weights": total * (2 if bf16 else 4) / weight_share,
        "gradients": trained * 4 / gradient_share,
        "optimizer": 0.0 if offload_optimizer else optimizer,
    }


def checkpoint_bytes(trained: int) -> int:
    """Of one checkpoint over all ranks: fp32 weights and two moments of what trains."""
    return 12 * trained
