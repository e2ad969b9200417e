"""What holds for every encoder, ours and transformers'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

MakeEncoder = Callable[..., Any]
MakePatches = Callable[..., Tensor]
GRIDS = ((4, 6), (4, 4), (2, 2), (4, 6), (2, 8), (4, 4))


def pieces_of(x: Tensor, grids: tuple[tuple[int, int], ...]) -> list[Tensor]:
    return list(x.split([rows * cols for rows, cols in grids]))


@pytest.fixture
def patches(random_patches: MakePatches) -> Tensor:
    return random_patches(sum(rows * cols for rows, cols in GRIDS))


def test_many_pictures_have_the_features_that_each_has_alone(
    make_encoder: MakeEncoder, kind: str, patches: Tensor
) -> None:
    encoder = make_encoder(kind)
    together = encoder(patches, GRIDS)
    alone = [encoder(piece, (grid,)) for piece, grid in zip(pieces_of(patches, GRIDS), GRIDS, strict=True)]
    assert together.shape == (len(patches), 16)
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=2e-5)


def test_the_order_of_pictures_permutes_their_features(make_encoder: MakeEncoder, kind: str, patches: Tensor) -> None:
    encoder, order = make_encoder(kind), [3, 5, 0, 2, 1, 4]
    features = pieces_of(encoder(patches, GRIDS), GRIDS)
    grids = tuple(GRIDS[i] for i in order)
    moved = encoder(torch.cat([pieces_of(patches, GRIDS)[i] for i in order]), grids)
    torch.testing.assert_close(moved, torch.cat([features[i] for i in order]), atol=2e-5, rtol=2e-5)


def test_a_changed_pixel_changes_its_picture_and_no_other(
    make_encoder: MakeEncoder, kind: str, patches: Tensor
) -> None:
    encoder = make_encoder(kind)
    changed = patches.clone()
    changed[30, 7] += 100  # in the second picture, which attends with the last as one batch
    before, after = encoder(patches, GRIDS), encoder(changed, GRIDS)
    moved = (before - after).abs().amax(-1) > 1e-4
    assert moved[24:40].all()
    assert not moved[:24].any() and not moved[40:].any()


def test_a_patch_knows_its_row_and_its_column(make_encoder: MakeEncoder, kind: str, patches: Tensor) -> None:
    encoder = make_encoder(kind)
    square, wide, tall = (encoder(patches[:16], (grid,)) for grid in ((4, 4), (2, 8), (8, 2)))
    assert not torch.allclose(square, wide, atol=1e-3) and not torch.allclose(wide, tall, atol=1e-3)


def test_every_weight_gets_a_gradient(make_encoder: MakeEncoder, kind: str, patches: Tensor) -> None:
    encoder = make_encoder(kind)
    encoder(patches, GRIDS).square().sum().backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert [name for name in without if not name.endswith("mask_token")] == []  # of pre-training; some always have one


def test_the_blank_picture_passes_through(make_encoder: MakeEncoder, kind: str) -> None:
    encoder = make_encoder(kind)
    rows, cols = encoder.blank_grid
    features = encoder(torch.zeros(rows * cols, 48, dtype=torch.uint8), (encoder.blank_grid,))
    assert features.shape == (rows * cols, 16) and features.isfinite().all()


def test_half_precision_stays_near(make_encoder: MakeEncoder, kind: str, patches: Tensor) -> None:
    exact = make_encoder(kind)(patches, GRIDS)
    half = make_encoder(kind).to(torch.bfloat16)(patches, GRIDS)
    assert half.dtype == torch.bfloat16
    # 8 bits of mantissa err by up to 2^-9 = 0.002 each time: 30 roundings in three layers, a random walk, make 0.011;
    # a gated MLP multiplies two rounded halves, and doubles that. Seen: 0.006 to 0.024, the latter for aimv2.
    assert (half.float() - exact).norm() / exact.norm() < 0.04


@pytest.mark.parametrize("select", [-1, -2])
def test_checkpointed_layers_give_the_same_features_and_gradients(
    make_encoder: MakeEncoder, kind: str, patches: Tensor, select: int
) -> None:
    plain, frugal = make_encoder(kind, select_layer=select), make_encoder(kind, select_layer=select).train()
    layers = [module for module in frugal.modules() if hasattr(module, "gradient_checkpointing")]
    assert layers
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = lambda f, *args: torch.utils.checkpoint.checkpoint(
            f, *args, use_reentrant=False
        )
    outputs = [encoder(patches, GRIDS) for encoder in (plain, frugal)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().mean().backward()
    gradients = dict(frugal.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, msg=name)
