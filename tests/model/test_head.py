from __future__ import annotations

import pytest
import torch

from sail_train.model import head as head_module
from sail_train.model.head import OutputHead


def make_head() -> tuple[OutputHead, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = OutputHead(8, 11, never=10)
    return head, torch.randn(7, 8, requires_grad=True), torch.randint(0, 10, (7,))


def plain_logits(head: OutputHead, hidden: torch.Tensor) -> torch.Tensor:
    return torch.cat((hidden @ head.weight[:10].T, torch.full((len(hidden), 1), -1e4)), dim=-1)


def test_without_targets_it_is_a_linear_layer_that_never_offers_one_token() -> None:
    head, hidden, _ = make_head()
    torch.testing.assert_close(head(hidden), plain_logits(head, hidden))
    assert (head(hidden).softmax(-1)[:, 10] == 0).all()


def test_the_token_that_is_never_offered_gets_no_gradient() -> None:
    head, hidden, targets = make_head()
    logprobs, entropies = head(hidden, targets, entropy=True)
    (logprobs.sum() + entropies.sum()).backward()
    assert head.weight.grad is not None and head.weight.grad.isfinite().all()
    assert not head.weight.grad[10].any() and head.weight.grad[:10].any(-1).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_entropies_are_those_of_the_scaled_softmax(temperature: float) -> None:
    head, hidden, targets = make_head()
    logprobs, entropies = head(hidden, targets, temperature=temperature, entropy=True)
    expected = torch.distributions.Categorical(logits=plain_logits(head, hidden) / temperature)
    torch.testing.assert_close(logprobs, expected.log_prob(targets))
    torch.testing.assert_close(entropies, expected.entropy())


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_chunks_change_neither_values_nor_gradients(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    head, hidden, targets = make_head()

    def run() -> tuple[torch.Tensor, ...]:
        logprobs, entropies = head(hidden, targets, entropy=True)
        grads = torch.autograd.grad((logprobs * torch.arange(7)).sum() + entropies.sum(), (hidden, head.weight))
        return logprobs, entropies, *grads

    whole = run()
    monkeypatch.setattr(head_module, "_CHUNK_ELEMENTS", 11 * rows)
    for a, b in zip(whole, run(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_no_target_gives_no_log_prob_and_still_a_gradient() -> None:
    head, hidden, targets = make_head()
    logprobs, entropies = head(hidden[:0], targets[:0])
    assert logprobs.shape == (0,) and entropies is None
    logprobs.sum().backward()
    assert head.weight.grad is not None and not head.weight.grad.any()


def test_half_precision_scores_in_fp32() -> None:
    head, hidden, targets = make_head()
    logprobs, _ = head.to(torch.bfloat16)(hidden.to(torch.bfloat16), targets)
    assert logprobs.dtype == torch.float32
