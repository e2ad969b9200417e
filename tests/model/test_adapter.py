from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sail_train.model.adapter import Adapter
from sail_train.model.vision.patches import patch_positions


def make_adapter(reduction: str = "pixel_shuffle", vision_size: int = 4) -> Adapter:
    torch.manual_seed(0)
    return Adapter(vision_size, 2, hidden_size=6, language_size=5, reduction=reduction)


@pytest.mark.parametrize("reduction", ["pixel_shuffle", "avg_pool"])
def test_a_token_is_made_of_one_square_of_patches(reduction: str) -> None:
    adapter, features = make_adapter(reduction), torch.randn(8, 4)
    changed = features.clone()
    changed[5, 2] += 1
    before, after = adapter(features), adapter(changed)
    assert before.shape == (2, 5)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_pooling_cannot_tell_the_patches_of_a_square_apart_and_shuffling_can() -> None:
    features = torch.randn(4, 4)
    turned = features[[2, 0, 3, 1]]
    pools, shuffles = make_adapter("avg_pool"), make_adapter("pixel_shuffle")
    torch.testing.assert_close(pools(features), pools(turned))
    assert not torch.allclose(shuffles(features), shuffles(turned), atol=1e-3)


@pytest.mark.parametrize(("language_size", "count"), [(2048, 16_793_600), (4096, 41_963_520)])
def test_parameters_are_those_of_sail_vl2(language_size: int, count: int) -> None:
    with torch.device("meta"):
        adapter = Adapter(1536, 2, language_size, language_size)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == count


def internvl_pixel_shuffle(x: Tensor) -> Tensor:
    """By its definition (version 2, scale 1/2): of raster-order (n, w, h, c), (n, w / 2, h / 2, 4 c)."""
    n, w, h, c = x.shape
    x = x.reshape(n, w, h // 2, 2 * c).transpose(1, 2)  # pairs of h into channels
    x = x.reshape(n, h // 2, w // 2, 4 * c)  # pairs of w
    return x.transpose(1, 2)


def test_released_weights_see_their_channels_in_their_order() -> None:
    """The released mlp1 on InternVL's pixel shuffle, and the adapter with its weights on merge-block order."""
    rows, cols, size = 4, 6, 4
    mlp1 = nn.Sequential(nn.LayerNorm(4 * size), nn.Linear(4 * size, 6), nn.GELU(), nn.Linear(6, 5))
    with torch.no_grad():
        mlp1[0].weight.normal_(), mlp1[0].bias.normal_()
    adapter = make_adapter(vision_size=size)
    ours = {"0": "norm", "1": "up", "3": "down"}
    renamed = {name.replace(name[0], ours[name[0]], 1): tensor for name, tensor in mlp1.state_dict().items()}
    adapter.load_state_dict(renamed)
    raster = torch.randn(1, rows, cols, size)
    released = mlp1(internvl_pixel_shuffle(raster)).flatten(0, 2)
    row, col = patch_positions(rows, cols, 2).unbind(-1)
    torch.testing.assert_close(adapter(raster[0, row, col]), released)


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="reduction='max' is none of avg_pool, pixel_shuffle"):
        make_adapter("max")
