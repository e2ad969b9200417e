"""Two ranks under ZeRO 3 against one process; started by test_zero3.py through torchrun.

Rank 0 has text alone and nothing to train on, rank 1 images and several chunks of targets: every module must be
called equally often all the same, or the ranks wait for each other until the test's time is up.
"""

from __future__ import annotations

import sys

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad

from sail_train.model import head
from sail_train.model.build import build_model
from sail_train.model.config import AdapterConfig, LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.packed import PackedLM

TOKENS = {"image": 61, "eos": 62, "pad": 63}


def build(tied: bool) -> PackedLM:
    config = ModelConfig(
        vision=VisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4,
            initializer_range=0.2,
        ),
        adapter=AdapterConfig(),
        language=LanguageConfig(
            hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, initializer_range=0.2, tie_word_embeddings=tied,
        ),
    )  # fmt: skip
    vlm = build_model(config, parents={}, seed=0, token_ids=TOKENS, vocab_size=64)
    vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return PackedLM(vlm)


def batch(with_image: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 60, (40,), generator=generator)
    labels = ids.roll(-1) if with_image else torch.full((40,), -100)
    count = 24 if with_image else 0
    if with_image:
        ids[3:9] = TOKENS["image"]
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": torch.cat((torch.arange(25), torch.arange(15))),
        "cu_seqlens": torch.tensor([0, 25, 40], dtype=torch.int32),
        "patches": torch.randint(0, 256, (count, 48), generator=generator, dtype=torch.uint8),
        "grids": torch.tensor([[4, 6]] if with_image else []).long().reshape(-1, 2),
    }


def check(tied: bool) -> None:
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    module = build(tied)
    engine = deepspeed.initialize(
        model=module, optimizer=torch.optim.SGD(module.parameters(), lr=0.1), config=settings
    )[0]
    rank = torch.distributed.get_rank()
    for _ in range(2):  # the second pass runs on the trace that the first recorded
        logprobs, entropies = engine(**batch(with_image=rank == 1), entropy=True)
        engine.backward(-logprobs.sum() - 0.1 * entropies.sum())
        grads = {name: safe_get_full_grad(p) for name, p in engine.module.named_parameters()}
        engine.optimizer.zero_grad()
    expected = build(tied)
    logprobs, entropies = expected(**batch(with_image=True), entropy=True)
    (-logprobs.sum() - 0.1 * entropies.sum()).backward()
    for name, parameter in expected.named_parameters():
        # averaged over two ranks, one of which has no loss
        torch.testing.assert_close(grads[name] * 2, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)
    engine.destroy()


if __name__ == "__main__":
    head._CHUNK_ELEMENTS = 64 * 7
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles for minutes
    deepspeed.init_distributed("gloo", verbose=False)
    for tied in (True, False):
        check(tied)
    print("ok")
    sys.stdout.flush()
