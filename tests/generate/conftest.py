"""A tiny vision-language model of the generator's contract: an embedding that sees patches, and a Qwen3."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from sail_train.types import Prompt

VOCAB, IMAGE, STOP, PAD = 61, 3, 1, 0


class TinyVLM(nn.Module):
    """One image is one placeholder, whose feature is a projection of its mean patch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.language_model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                initializer_range=0.4,
            )
        )
        self.vision = nn.Linear(12, 32)
        self.embed_calls = 0

    def embed(self, input_ids: Tensor, patches: Tensor, grids: Tensor) -> Tensor:
        self.embed_calls += 1
        embedded = self.language_model.get_input_embeddings()(input_ids)
        features = [part.float().mean(0) / 64 for part in patches.split([int(rows * cols) for rows, cols in grids])]
        if features:
            embedded[input_ids == IMAGE] = self.vision(torch.stack(features))
        return embedded


@pytest.fixture
def model() -> TinyVLM:
    return TinyVLM().eval()


@pytest.fixture
def make_prompts() -> Callable[..., list[Prompt]]:
    def make(count: int, *, images: bool = True, seed: int = 0) -> list[Prompt]:
        random = np.random.default_rng(seed)
        prompts = []
        for i in range(count):
            ids = random.integers(4, VOCAB, size=5 + int(random.integers(0, 7))).astype(np.int32)
            with_image = images and i % 2 == 0
            if with_image:
                ids[2] = IMAGE
            patches = random.integers(0, 256, size=(4 if with_image else 0, 12), dtype=np.uint8)
            prompts.append(
                Prompt(uid=f"p{i}", input_ids=ids, patches=patches, grids=((2, 2),) if with_image else ())
            )
        return prompts

    return make


@pytest.fixture
def reference_logprobs(model: TinyVLM) -> Callable[..., Tensor]:
    """Log-probs of a completion by one plain forward over prompt and completion."""

    def compute(prompt: Prompt, token_ids: tuple[int, ...], temperature: float = 1.0) -> Tensor:
        ids = torch.tensor([*prompt.input_ids.tolist(), *token_ids])[None]
        grids = torch.tensor(prompt.grids, dtype=torch.int64).reshape(-1, 2)
        with torch.no_grad():
            embedded = model.embed(ids, torch.from_numpy(prompt.patches), grids)
            logits = model.language_model(inputs_embeds=embedded, use_cache=False).logits[0]
        start = len(prompt.input_ids) - 1
        logprobs = torch.log_softmax(logits[start:-1].float() / temperature, dim=-1)
        return logprobs.gather(-1, torch.tensor(token_ids)[:, None])[:, 0]

    return compute
