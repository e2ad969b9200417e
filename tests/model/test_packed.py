from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sail_train.model.packed import PackedLM
from sail_train.model.vlm import SailVLForConditionalGeneration

Sample = dict[str, Tensor]
Make = Callable[..., SailVLForConditionalGeneration]
MakeSample = Callable[..., Sample]
Pack = Callable[..., Sample]


def alone(vlm: SailVLForConditionalGeneration, sample: Sample) -> Tensor:
    """Log-probs of one sample through transformers' own forward pass: no packing, plain sdpa."""
    logits = vlm(
        input_ids=sample["input_ids"][None], patches=sample["patches"], grids=sample["grids"], use_cache=False
    ).logits[0]
    where = sample["labels"] != -100
    return logits.log_softmax(-1)[where].gather(-1, sample["labels"][where][:, None])[:, 0]


def gradients(vlm: SailVLForConditionalGeneration, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*vlm.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_loss_and_gradients_equal_those_of_each_sample_alone(
    make_model: Make,
    make_config: Callable,
    pack_samples: Pack,
    mixed_samples: list[Sample],
    tied: bool,
    checkpointing: bool,
) -> None:
    vlm = make_model(make_config(tie_word_embeddings=tied))
    expected = torch.cat([alone(vlm, sample) for sample in mixed_samples])
    expected_grads = gradients(vlm, -expected.sum())
    if checkpointing:
        vlm.gradient_checkpointing_enable()
        vlm.train()
    logprobs, entropies = PackedLM(vlm)(**pack_samples(*mixed_samples))
    assert entropies is None and logprobs.dtype == torch.float32
    # fp32 sums in another order, through two layers: 1e-5 of values of order one to ten
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)
    for name, grad in gradients(vlm, -logprobs.sum()).items():
        scale = expected_grads[name].abs().max()
        assert scale > 0, name
        assert (grad - expected_grads[name]).abs().max() <= 1e-5 * scale + 1e-6, name


def test_one_layer_is_recomputed_per_part_when_checkpointing(
    make_model: Make, pack_samples: Pack, mixed_samples: list[Sample]
) -> None:
    vlm = make_model().train()
    vlm.gradient_checkpointing_enable()
    calls: dict[str, int] = {}
    language = vlm.language_model.model.layers[0].self_attn.q_proj
    for part, layer in (("vision", vlm.vision.layers[0].qkv), ("language", language)):
        layer.register_forward_hook(lambda *_, part=part: calls.update({part: calls.get(part, 0) + 1}))
    logprobs, _ = PackedLM(vlm)(**pack_samples(*mixed_samples))
    assert calls == {"vision": 1, "language": 1}
    logprobs.sum().backward()
    assert calls == {"vision": 2, "language": 2}


def test_changing_one_sample_leaves_the_others_bit_identical(
    model: SailVLForConditionalGeneration, make_sample: MakeSample, pack_samples: Pack
) -> None:
    samples = [make_sample(i, 12, (2, 4)) for i in range(5)]
    changed = [*samples[:2], make_sample(99, 12, (2, 4)), *samples[3:]]
    lm = PackedLM(model)
    with torch.no_grad():
        before, after = (lm(**pack_samples(*group))[0].view(5, -1) for group in (samples, changed))
    kept = [0, 1, 3, 4]
    assert torch.equal(before[kept], after[kept]) and not torch.allclose(before[2], after[2])


def test_no_gradient_crosses_a_sample(
    model: SailVLForConditionalGeneration, make_sample: MakeSample, pack_samples: Pack
) -> None:
    samples = [make_sample(i, length) for i, length in enumerate([7, 30, 12])]
    lm, embeddings = PackedLM(model), []
    hook = model.get_input_embeddings().register_forward_hook(lambda *args: embeddings.append(args[2]))
    logprobs, _ = lm(**pack_samples(*samples))
    hook.remove()
    (grad,) = torch.autograd.grad(logprobs[6 : 6 + 29].sum(), embeddings)
    assert not grad[:7].any() and not grad[37:].any() and grad[7:36].any(-1).all()


def test_a_samples_log_probs_do_not_depend_on_its_company(
    model: SailVLForConditionalGeneration, make_sample: MakeSample, pack_samples: Pack
) -> None:
    one = make_sample(0, 15, (4, 4))
    lm = PackedLM(model)
    first = lm(**pack_samples(one))[0]
    for other in (make_sample(1, 3), make_sample(2, 60, (2, 8), (6, 6)), make_sample(3, 15, (4, 4))):
        torch.testing.assert_close(lm(**pack_samples(one, other))[0][:14], first, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lm(**pack_samples(other, one))[0][-14:], first, atol=1e-5, rtol=1e-5)


def test_a_batch_without_images_passes_a_blank_one_that_changes_nothing(
    make_model: Make, make_sample: MakeSample, pack_samples: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, batch = make_model(), pack_samples(make_sample(0, 9), make_sample(1, 5))
    lm = PackedLM(vlm)
    logprobs, _ = lm(**batch)
    logprobs.sum().backward()
    for name, parameter in vlm.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith(("vision", "adapter")):
            assert not parameter.grad.any(), name
    monkeypatch.setattr(vlm, "dummy_features", lambda device: torch.zeros(1))
    assert torch.equal(lm(**batch)[0], logprobs)


def test_a_batch_with_nothing_to_train_on_still_reaches_every_parameter(
    make_model: Make, make_sample: MakeSample, pack_samples: Pack
) -> None:
    vlm, sample = make_model(), make_sample(0, 9, (2, 2))
    sample["labels"] = torch.full_like(sample["labels"], -100)
    logprobs, _ = PackedLM(vlm)(**pack_samples(sample))
    assert logprobs.shape == (0,)
    logprobs.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in vlm.parameters())


def test_temperature_and_entropy_are_those_of_the_drawn_distribution(
    model: SailVLForConditionalGeneration, make_sample: MakeSample, pack_samples: Pack
) -> None:
    sample = make_sample(0, 9)
    logits = model(input_ids=sample["input_ids"][None], use_cache=False).logits[0, :-1]
    expected = torch.distributions.Categorical(logits=logits / 0.5)
    logprobs, entropies = PackedLM(model)(**pack_samples(sample), temperature=0.5, entropy=True)
    torch.testing.assert_close(logprobs, expected.log_prob(sample["input_ids"][1:]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, expected.entropy(), atol=1e-5, rtol=1e-5)


def test_a_temperature_of_zero_is_refused(
    model: SailVLForConditionalGeneration, make_sample: MakeSample, pack_samples: Pack
) -> None:
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        PackedLM(model)(**pack_samples(make_sample(0, 4)), temperature=0)


def test_no_mask_over_the_packed_sequence_is_built(
    model: SailVLForConditionalGeneration, pack_samples: Pack, mixed_samples: list[Sample]
) -> None:
    batch = pack_samples(*mixed_samples)
    total, biggest = len(batch["input_ids"]), 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            nonlocal biggest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                biggest = max(biggest, out.numel())
            return out

    with Watch(), torch.no_grad():
        PackedLM(model)(**batch)
    assert biggest < total * total


def test_frozen_vision_gets_no_gradient_and_costs_no_graph(
    make_model: Make, make_sample: MakeSample, pack_samples: Pack
) -> None:
    vlm = make_model()
    vlm.vision.requires_grad_(False)
    vlm.gradient_checkpointing_enable()
    vlm.train()
    PackedLM(vlm)(**pack_samples(make_sample(0, 9, (2, 2))))[0].sum().backward()
    assert all(p.grad is None for p in vlm.vision.parameters())
    assert all(p.grad is not None for p in vlm.adapter.parameters())
