"""Costs from shapes, against counts made by hand and by torch."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sail_train.cost import ModelShape, Tower, checkpoint_bytes, mfu, peak_flops, state_bytes

LANGUAGE = Tower(layers=3, hidden=32, intermediate=48, heads=4, kv_heads=2, head_dim=16, causal=True)
VISION = Tower(layers=2, hidden=16, intermediate=24, heads=2, kv_heads=2, head_dim=8, causal=False)
SHAPE = ModelShape(vision=VISION, patch_dim=12, merge=4, adapter_hidden=20, language=LANGUAGE, vocab=100, tied=True)


def layer_flops(tower: Tower, length: int) -> int:
    """What torch counts for one layer's matrix products on one sequence, masked scores included."""
    inner, small = tower.heads * tower.head_dim, tower.kv_heads * tower.head_dim
    hidden = torch.randn(length, tower.hidden)
    with FlopCounterMode(display=False) as counter:
        query, key = hidden @ torch.randn(tower.hidden, inner), hidden @ torch.randn(tower.hidden, small)
        value = hidden @ torch.randn(tower.hidden, small)
        query, key, value = (part.view(length, -1, tower.head_dim).transpose(0, 1) for part in (query, key, value))
        groups = tower.heads // tower.kv_heads
        scores = query @ key.repeat_interleave(groups, 0).transpose(1, 2)
        mixed = (scores @ value.repeat_interleave(groups, 0)).transpose(0, 1).reshape(length, inner)
        _ = mixed @ torch.randn(inner, tower.hidden)
        gate = hidden @ torch.randn(tower.hidden, tower.intermediate)
        _ = (gate * (hidden @ torch.randn(tower.hidden, tower.intermediate))) @ torch.randn(
            tower.intermediate, tower.hidden
        )
    return counter.get_total_flops()


def test_forward_equals_what_torch_counts() -> None:
    assert VISION.forward_flops([10]) == 2 * layer_flops(VISION, 10)
    pairs_not_seen = 3 * 4.0 * 4 * 16 * 10 * 10 / 2  # torch computes the masked half of the scores too
    assert LANGUAGE.forward_flops([10]) == 3 * layer_flops(LANGUAGE, 10) - pairs_not_seen


def test_sequences_do_not_see_each_other() -> None:
    apart, together = LANGUAGE.forward_flops([50, 50]), LANGUAGE.forward_flops([100])
    assert together - apart == 4.0 * 3 * 4 * 16 * (100**2 - 2 * 50**2) / 2


def test_experts_that_are_not_active_weigh_but_cost_nothing() -> None:
    dense = Tower(layers=1, hidden=8, intermediate=16, heads=2, kv_heads=1, head_dim=4, causal=True)
    sparse = Tower(
        layers=1, hidden=8, intermediate=16, heads=2, kv_heads=1, head_dim=4, causal=True, experts=8, active_experts=1
    )
    assert sparse.weights - dense.weights == 7 * 3 * 8 * 16 + 8 * 8
    assert sparse.forward_flops([5]) - dense.forward_flops([5]) == 2 * 5 * 8 * 8, "the router alone"


def test_a_plain_mlp_has_two_matrices_where_a_gated_one_has_three() -> None:
    plain = Tower(**{**vars(VISION), "gated": False})
    assert VISION.weights - plain.weights == 2 * 16 * 24
    assert VISION.forward_flops([5]) - plain.forward_flops([5]) == 2 * 5 * 2 * 16 * 24


def test_weights_of_the_parts() -> None:
    assert SHAPE.weights["vision"] == VISION.weights + 12 * 16
    assert SHAPE.weights["adapter"] == 64 * 20 + 20 * 32
    assert SHAPE.weights["language"] == LANGUAGE.weights + 100 * 32
    assert ModelShape(**{**vars(SHAPE), "pools": True}).weights["adapter"] == 16 * 20 + 20 * 32
    untied = ModelShape(**{**vars(SHAPE), "tied": False})
    assert untied.weights["language"] - SHAPE.weights["language"] == 100 * 32


def test_logits_are_counted_where_they_are_computed() -> None:
    all_positions, some = SHAPE.forward_flops([30], []), SHAPE.forward_flops([30], [], num_trained=4)
    assert all_positions["language"] - some["language"] == 2 * 100 * 32 * 26
    assert some["vision"] == some["adapter"] == 0


@pytest.mark.parametrize(
    ("trained", "factors"),
    [
        # times the forward of: patch embedding, vision's weights, its attention, adapter, language's weights, attention
        ({"vision", "adapter", "language"}, (2, 3, 3, 3, 3, 3)),
        ({"adapter"}, (1, 1, 1, 3, 2, 3)),
        ({"language"}, (1, 1, 1, 1, 3, 3)),
        ({"vision"}, (2, 3, 3, 2, 2, 3)),
        (set(), (1, 1, 1, 1, 1, 1)),
    ],
)
def test_backward_costs_only_where_gradients_flow(trained: set[str], factors: tuple[int, ...]) -> None:
    lengths, patches = [20, 9], [16, 8]
    forward = (
        2.0 * 12 * 16 * 24,
        VISION.matrix_flops(patches),
        VISION.attention_flops(patches),
        2.0 * (64 * 20 + 20 * 32) * 6,
        LANGUAGE.matrix_flops(lengths) + 2.0 * 100 * 32 * 29,
        LANGUAGE.attention_flops(lengths),
    )
    assert sum(SHAPE.forward_flops(lengths, patches).values()) == sum(forward)
    expected = sum(part * factor for part, factor in zip(forward, factors, strict=True))
    assert SHAPE.train_flops(lengths, patches, trained=trained) == expected


def test_mfu_is_what_was_done_of_what_could_have_been() -> None:
    assert mfu(8e12, 2.0, num_devices=4, peak=2e12) == 0.5


def test_gpus_are_known_by_name() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_flops("Some Other GPU") is None


def test_states_shrink_with_the_stage() -> None:
    sizes = [
        sum(state_bytes(100, 80, zero_stage=stage, num_devices=4, bf16=stage > 0).values()) for stage in (0, 1, 2, 3)
    ]
    assert sizes == [400 + 320 + 640, 200 + 320 + 240, 200 + 80 + 240, 50 + 80 + 240]
    off = state_bytes(100, 80, zero_stage=2, num_devices=4, bf16=True, offload_optimizer=True)
    assert off["optimizer"] == 0
    assert checkpoint_bytes(80) == 960
