from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sail_train.model.vision.patches import patch_positions
from sail_train.model.vision.positions import LearnedPositions


def random_positions(side: int = 8, size: int = 6, merge: int = 2) -> LearnedPositions:
    positions = LearnedPositions(side, size, merge)
    with torch.no_grad():
        positions.table.copy_(torch.randn(side * side, size, generator=torch.Generator().manual_seed(0)))
    return positions


def at_places(raster: Tensor, rows: int, cols: int) -> Tensor:
    """(rows * cols, size) in merge-block order of (rows, cols, size)."""
    row, col = patch_positions(rows, cols, 2).unbind(-1)
    return raster[row, col]


def test_at_its_own_size_the_table_is_read_bit_for_bit() -> None:
    positions = random_positions(side=32)
    expected = at_places(positions.table.view(32, 32, 6), 32, 32)
    assert torch.equal(positions(((32, 32), (32, 32))), torch.cat((expected, expected)))


@pytest.mark.parametrize("grid", [(2, 2), (4, 8), (8, 6), (10, 14), (32, 2), (128, 128)])
def test_other_sizes_are_torch_s_bicubic_interpolation(grid: tuple[int, int]) -> None:
    positions = random_positions()
    picture = positions.table.view(8, 8, 6).permute(2, 0, 1)[None]
    resized = interpolate(picture, size=grid, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    torch.testing.assert_close(positions((grid,)), at_places(resized, *grid), atol=2e-6, rtol=0)  # order of sums


def test_pictures_have_their_positions_in_their_order() -> None:
    positions = random_positions()
    grids = ((4, 6), (8, 8), (4, 6), (2, 2))
    together = positions(grids).split([24, 64, 24, 4])
    assert all(torch.equal(part, positions((grid,))) for part, grid in zip(together, grids, strict=True))


def test_every_picture_s_gradient_reaches_the_table() -> None:
    positions = random_positions()
    positions(((16, 16),)).sum().backward()
    gradient = positions.table.grad
    assert gradient is not None and (gradient.abs() > 0).all()
    assert gradient.sum().item() == pytest.approx(16 * 16 * 6, rel=1e-5)  # the weights of each place sum to one


def test_half_precision_tables_are_resampled_in_single() -> None:
    single, half = random_positions(), random_positions().to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        resampled = half(((12, 20),))
    assert resampled.dtype == torch.float32
    torch.testing.assert_close(
        resampled, single(((12, 20),)), atol=0.03, rtol=0
    )  # of entries rounded at 2^-9 of up to 4
    single.table.data = half.table.float()
    torch.testing.assert_close(resampled, single(((12, 20),)), atol=1e-6, rtol=1e-6)


def test_a_drawn_table_tells_places_apart_and_neighbours_alike() -> None:
    positions = LearnedPositions(8, 10, 2, base=100.0)
    positions.table.data.copy_(positions.sinusoids())
    table = positions.table.detach()
    assert torch.pdist(table).min() > 0.1
    distances = torch.cdist(table, table)[0].view(8, 8)
    assert distances[0, 1] < distances[0, 3] and distances[1, 0] < distances[3, 0]
    twice = at_places(
        interpolate(table.view(1, 8, 8, 10).permute(0, 3, 1, 2), size=(16, 16), mode="bilinear")[0].permute(1, 2, 0),
        16,
        16,
    )
    assert (positions(((16, 16),)) - twice).abs().max() < 0.3  # resampled, a place is still where it was
