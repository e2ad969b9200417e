"""The model in its training form: packed samples in, log-probs of the trained positions out.

One row of tokens without padding; attention stays within a sample (`model.attention`), logits are computed at
trained positions alone. A batch without images passes a blank one through the vision encoder, times zero, so that
every rank calls every module: ZeRO's collectives wait for all of them.
"""

from __future__ import annotations

from torch import Tensor, nn

from sail_train.model.attention import Packing, no_mask
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.types import IGNORE_INDEX


class PackedLM(nn.Module):
    def __init__(self, vlm: SailVLForConditionalGeneration) -> None:
        super().__init__()
        self.vlm = vlm

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        patches: Tensor,
        grids: Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """fp32 log-probs (N,) of the N positions with a label, in order, and their entropies (N,) if asked for.

        `labels` (T,) are already shifted: the target of each position; the other tensors are those of
        `types.Batch`. ValueError if `temperature` is not above 0.
        """
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0: log-probs at 0 are those of one token alone")
        hidden = self.vlm.language_model.get_decoder()(
            inputs_embeds=self._embed(input_ids, patches, grids)[None],
            attention_mask=no_mask(input_ids.device),
            position_ids=position_ids[None],
            use_cache=False,
            packing=Packing.of(cu_seqlens, backend=self.vlm.config.attention),
        ).last_hidden_state[0]  # (T, H)
        trained = (labels != IGNORE_INDEX).nonzero()[:, 0]  # (N,)
        return self.vlm.get_output_embeddings()(
            hidden[trained], labels[trained], temperature=temperature, entropy=entropy
        )

    def _embed(self, input_ids: Tensor, patches: Tensor, grids: Tensor) -> Tensor:
        embeddings = self.vlm.embed(input_ids, patches, grids)  # (T, H)
        if len(grids):
            return embeddings
        return embeddings + self.vlm.dummy_features(input_ids.device).sum() * 0
