"""Parts freeze or become groups."""

import engine_tiny as tiny
import pytest
import torch

from sail_train.engine.config import OptimConfig
from sail_train.engine.optim import build_optimizer, freeze


def test_a_part_without_a_learning_rate_is_frozen() -> None:
    parts = tiny.parts_of(tiny.Packed())
    freeze(parts, OptimConfig(lr={"adapter": 1e-3, "vision": 0.0}))
    trains = {part: {p.requires_grad for _, p in named} for part, named in parts.items()}
    assert trains == {"vision": {False}, "adapter": {True}, "language": {False}}


def test_freezing_again_thaws_what_now_trains() -> None:
    parts = tiny.parts_of(tiny.Packed())
    freeze(parts, OptimConfig(lr={"adapter": 1e-3}))
    freeze(parts, OptimConfig(lr={"vision": 1e-3}))
    assert all(p.requires_grad for _, p in parts["vision"])
    assert not any(p.requires_grad for _, p in parts["adapter"])


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ({"visoin": 1e-3}, r"optim\.lr\.visoin: the model has no such part; did you mean 'vision'"),
        ({"q": 1e-3}, "there are adapter, language, vision"),
        ({}, "freezes every part"),
        ({"vision": 0.0}, "freezes every part"),
    ],
)
def test_a_part_that_is_not_there_is_refused(lr: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(tiny.parts_of(tiny.Packed()), OptimConfig(lr=lr))


def test_an_empty_part_cannot_train() -> None:
    with pytest.raises(ValueError, match=r"optim\.lr\.vision=0\.1: this part has no parameters"):
        freeze({"vision": []}, OptimConfig(lr={"vision": 0.1}))


def test_weight_decay_spares_vectors() -> None:
    parts = tiny.parts_of(tiny.Packed())
    config = OptimConfig(lr={"vision": 1e-3, "adapter": 1e-2}, weight_decay=0.1, betas=[0.8, 0.9], eps=1e-6)
    freeze(parts, config)
    optimizer = build_optimizer(parts, config)
    found = {
        (group["name"], group["weight_decay"]): sorted({p.ndim for p in group["params"]})
        for group in optimizer.param_groups
    }
    assert found == {("vision", 0.1): [2], ("vision", 0.0): [1], ("adapter", 0.1): [2]}
    assert optimizer.defaults["betas"] == (0.8, 0.9) and optimizer.defaults["eps"] == 1e-6
    assert isinstance(optimizer, torch.optim.AdamW)
