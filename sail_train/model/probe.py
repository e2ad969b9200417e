"""Does packed training compute what the language model computes? Tried on architectures that no test has tried.

Two short samples in one packed row, and each alone in a plain forward pass of transformers' own, with its own eager
attention: the log-probs must be the same. They are not where the model does something behind its decoder (scales or
caps its logits), before it (scales its embeddings), or beside attention (a state that runs on from sample to sample).
Then the last token once more behind a cache of the others, as the generator decodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from sail_train.model.language import TESTED
from sail_train.model.packed import PackedLM
from sail_train.types import IGNORE_INDEX

LENGTHS = (7, 5)
"""Tokens of the two samples."""

LARGEST = 50.0
"""Absolute value of the largest logit during the probe: random weights give small ones, on which a cap does nothing."""

_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 2.0, torch.float16: 0.5}
"""Of log-probs whose logits go up to `LARGEST`: a few hundred roundings (2^-24, 2^-9, 2^-12) of such a value. A cap, a
scale or a sample that sees another one is off by 1 to 50."""


def check_packed(vlm: Any, *, tested: tuple[str, ...] = TESTED) -> None:
    """ValueError if packed log-probs of a SailVLForConditionalGeneration are not those of the samples alone;
    `tested` architectures are not tried."""
    text = vlm.config.text_config
    if text.model_type in tested:
        return
    samples = _samples(vlm)
    with torch.no_grad(), _evaluated(vlm):
        try:
            with _amplified(vlm, samples[0]):
                with _eager(vlm.language_model.config):
                    alone = torch.cat([_plain(vlm, sample) for sample in samples])
                _agree(vlm, "packed samples", _packed(vlm, samples), alone)
                _agree(vlm, "a token behind a cache", _cached(vlm, samples[-1]), alone[-1])
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"language.model_type={text.model_type!r} does not run packed: {error}; use another"
            ) from error


def _agree(vlm: Any, what: str, found: Tensor, expected: Tensor) -> None:
    worst, allowed = float((found - expected).abs().max()), _TOLERANCE[vlm.get_input_embeddings().weight.dtype]
    if not worst <= allowed:
        raise ValueError(
            f"language.model_type={vlm.config.text_config.model_type!r}: log-probs of {what} differ from those of "
            f"each sample alone by {worst:.2e} (allowed: {allowed:.0e}); we would train or run another model than it "
            f"is; use another, e.g. {', '.join(TESTED)}"
        )


def _samples(vlm: Any) -> list[Tensor]:
    """Token ids, none of them the image's."""
    device = vlm.get_input_embeddings().weight.device
    others = [i for i in range(vlm.config.text_config.vocab_size) if i != vlm.config.image_token_id]
    generator = torch.Generator().manual_seed(0)
    return [torch.tensor(others)[torch.randint(len(others), (n,), generator=generator)].to(device) for n in LENGTHS]


def _packed(vlm: Any, samples: list[Tensor]) -> Tensor:
    ids = torch.cat(samples)
    labels = torch.cat([torch.cat((sample[1:], sample.new_tensor([IGNORE_INDEX]))) for sample in samples])
    side = vlm.config.vision_config.patch_size
    logprobs, _ = PackedLM(vlm)(
        ids,
        labels,
        torch.cat([torch.arange(len(sample), device=ids.device) for sample in samples]),
        torch.tensor([0, *LENGTHS], device=ids.device).cumsum(0).int(),
        torch.zeros(0, 3 * side**2, dtype=torch.uint8, device=ids.device),
        torch.zeros(0, 2, dtype=torch.int64, device=ids.device),
    )
    return logprobs


def _plain(vlm: Any, sample: Tensor) -> Tensor:
    logits: Tensor = vlm.language_model(input_ids=sample[None], use_cache=False).logits[0, :-1]
    return logits.float().log_softmax(-1).gather(-1, sample[1:, None])[:, 0].to(logits.dtype)


def _cached(vlm: Any, sample: Tensor) -> Tensor:
    """Log-prob of the sample's last token, drawn after the one before it was decoded behind a cache."""
    cache = DynamicCache()
    before, last, target = sample[None, :-2], sample[None, -2:-1], sample[-1]
    vlm.language_model(input_ids=before, past_key_values=cache, use_cache=True)
    positions = torch.tensor([[before.shape[1]]], device=sample.device)
    output = vlm.language_model(input_ids=last, position_ids=positions, past_key_values=cache, use_cache=True)
    logprobs: Tensor = output.logits[0, -1].float().log_softmax(-1)
    return logprobs[target]


@contextmanager
def _amplified(vlm: Any, sample: Tensor) -> Iterator[None]:
    """The output layer's input scaled, the same in all passes, so that its logits go up to `LARGEST`."""
    head = vlm.get_output_embeddings()
    found: list[Tensor] = []
    watch = head.register_forward_hook(lambda _, __, logits: found.append(logits))
    vlm.language_model(input_ids=sample[None], use_cache=False)
    watch.remove()
    logits = found[0].float()
    logits[..., vlm.config.image_token_id] = 0.0
    factor = LARGEST / float(logits.abs().max().clamp(min=1e-6))
    scaled = head.register_forward_pre_hook(lambda _, arguments: (arguments[0] * factor, *arguments[1:]))
    try:
        yield
    finally:
        scaled.remove()


@contextmanager
def _eager(text: Any) -> Iterator[None]:
    """transformers' own attention: ours would leave out the same things twice."""
    ours = text._attn_implementation
    text._attn_implementation = "eager"
    try:
        yield
    finally:
        text._attn_implementation = ours


@contextmanager
def _evaluated(vlm: Any) -> Iterator[None]:
    training = vlm.training
    vlm.eval()
    try:
        yield
    finally:
        vlm.train(training)
