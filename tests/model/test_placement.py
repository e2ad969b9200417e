from __future__ import annotations

import pytest
import torch
from torch import nn

from sail_train.model.placement import HOST, hand_over, on_meta


class Tied(nn.Module):
    """Two layers that share a matrix, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("angles", 1 / torch.arange(1, 5))


def test_parameters_have_shapes_and_buffers_values() -> None:
    with on_meta():
        module = Tied()
    assert all(parameter.is_meta for parameter in module.parameters())
    assert module.first.weight.shape == (3, 3) and module.second.weight is module.first.weight
    assert torch.equal(module.angles, 1 / torch.arange(1, 5))  # type: ignore[arg-type]
    assert not any(parameter.is_meta for parameter in Tied().parameters())


def test_what_parameters_know_of_themselves_stays() -> None:
    class Marked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = nn.Parameter(torch.zeros(2), requires_grad=False)
            weight.mark = "kept"  # type: ignore[attr-defined]
            self.weight = weight
            self.register_parameter("bias", None)

    with on_meta():
        module = Marked()
    assert module.weight.mark == "kept" and not module.weight.requires_grad  # type: ignore[attr-defined]
    assert module._parameters["bias"] is None


def test_modules_register_as_ever_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="broken"), on_meta():
        raise RuntimeError("broken")
    assert not nn.Linear(2, 2).weight.is_meta


def test_pieces_are_written_where_they_belong() -> None:
    weight = nn.Parameter(torch.zeros(3, 2))
    HOST.write(weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, start=2)
    assert weight.tolist() == [[0, 0], [1, 3], [2, 4]] and HOST.shape(weight) == (3, 2)


def test_parameters_and_buffers_are_handed_over() -> None:
    source, target = Tied(), Tied()
    source.angles += 1.0
    hand_over(source, target, HOST)
    assert torch.equal(target.second.weight, source.first.weight) and torch.equal(target.angles, source.angles)
