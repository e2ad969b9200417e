"""Sizes, grids and tokens beside the definitions that they follow, written a second time in the plainest way."""

from __future__ import annotations

import math
import random

import pytest

from sail_train.types import BadSample
from sail_train.visual import ImageSpec, VideoSpec, tile_grids

SEED = ImageSpec(min_pixels=4 * 28**2, max_pixels=5120 * 28**2)
SAIL = ImageSpec(mode="tile")


def seed_size(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """Round to the nearest multiple of 28, then floor or ceil under the pixel caps (Seed1.5-VL's published demo)."""
    rows, cols = max(28, round(height / 28) * 28), max(28, round(width / 28) * 28)
    if rows * cols > most:
        shrink = math.sqrt(height * width / most)
        rows, cols = math.floor(height / shrink / 28) * 28, math.floor(width / shrink / 28) * 28
    elif rows * cols < least:
        grow = math.sqrt(least / (height * width))
        rows, cols = math.ceil(height * grow / 28) * 28, math.ceil(width * grow / 28) * 28
    return rows, cols


def internvl_grid(height: int, width: int, grids: set[tuple[int, int]], side: int = 448) -> tuple[int, int]:
    """InternVL-2's choice among (columns, rows): the nearest aspect ratio, and of equally near ones a later, larger
    grid if the image's area exceeds half of it."""
    best, nearest = (1, 1), float("inf")
    for cols, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - cols / rows)
        if distance < nearest:
            best, nearest = (cols, rows), distance
        elif distance == nearest and width * height > 0.5 * side * side * cols * rows:
            best = (cols, rows)
    return best


def internvl_tiles(
    height: int, width: int, most: int, *, least: int = 1, multi_scale: bool = False
) -> list[tuple[int, int]]:
    """(columns, rows) of the cuts, the thumbnail last."""
    grids = {(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if least <= i * j <= most}
    first = internvl_grid(height, width, grids)
    cuts = [first]
    if multi_scale:
        others = {(i, j) for i, j in grids if first[0] % i or first[1] % j}
        cuts += [internvl_grid(height, width, others)] if others else []
    return cuts + [(1, 1)] if sum(i * j for i, j in cuts) > 1 else cuts


def random_size(rng: random.Random, most: float = 100.0) -> tuple[int, int]:
    """(height, width) of any area and shape up to most:1."""
    short = max(1, round(math.exp(rng.uniform(0, math.log(3000)))))
    long = min(16_384, round(short * math.exp(rng.uniform(0, math.log(most)))))
    return (short, long) if rng.random() < 0.5 else (long, short)


def test_native_sizes_are_seeds_wherever_its_rule_gives_one() -> None:
    rng = random.Random(0)
    compared = 0
    for _ in range(20_000):
        height, width = random_size(rng)
        expected = seed_size(height, width, SEED.min_pixels, SEED.max_pixels)
        # at extreme shapes its floor gives a side of nothing; and its ceil may pass the limit
        if min(expected) >= 28 and math.prod(expected) <= SEED.max_pixels:
            assert SEED.resize(height, width) == expected, (height, width)
            compared += 1
    assert compared > 19_000


@pytest.mark.parametrize("limits", [(784, 784), (4 * 784, 5 * 784), (4 * 784, 5120 * 784), (784, 1792**2), (40, 4000)])
def test_the_limits_hold_for_any_size(limits: tuple[int, int]) -> None:
    rng = random.Random(f"{limits}")
    spec = ImageSpec(min_pixels=limits[0], max_pixels=limits[1])
    for _ in range(5_000):
        size = random_size(rng, 199)
        if max(size) / min(size) > 200:
            continue
        height, width = spec.resize(*size)
        assert height % 28 == width % 28 == 0 and 28 <= height and 28 <= width
        assert height * width <= spec.max_pixels, size
        # a grid may be too coarse for both limits; then the upper one holds
        assert height * width >= spec.min_pixels or spec.max_pixels < 2 * spec.min_pixels + 2 * 28 * 28, size
        assert spec.num_tokens(*size) == height * width // 28**2


def test_the_published_sizes_give_the_published_tokens() -> None:
    """SAIL-VL2: 448 pixels are 256 tokens, AnyRes 1792 x 1792 is 4096; Seed1.5-VL: at most 5120 an image."""
    assert ImageSpec().num_tokens(448, 448) == 256
    assert ImageSpec(max_pixels=1792**2).num_tokens(1792, 1792) == 4096
    assert SEED.num_tokens(4000, 3000) <= 5120 < 1.03 * SEED.num_tokens(4000, 3000)
    assert SAIL.num_tokens(448, 448) == 256 and SAIL.num_tokens(448 * 3, 448 * 4, 12) == 13 * 256 == 3328


@pytest.mark.parametrize("most", [1, 2, 6, 10, 12, 24])
@pytest.mark.parametrize("multi_scale", [False, True])
def test_tiles_are_internvls(most: int, multi_scale: bool) -> None:
    rng = random.Random(most)
    spec = ImageSpec(mode="tile", multi_scale=multi_scale, max_aspect_ratio=1000)
    for number in range(3_000):
        # every second size is a whole ratio, where ties are
        size = random_size(rng) if number % 2 else (rng.randint(1, 12) * 112, rng.randint(1, 12) * 112)
        expected = internvl_tiles(*size, most, multi_scale=multi_scale)
        assert [(cols, rows) for rows, cols in spec.tiles(*size, most)] == expected, size
        pictures = sum(cols * rows for cols, rows in expected)
        assert spec.grids(*size, most) == ((32, 32),) * pictures and spec.num_tokens(*size, most) == 256 * pictures


def test_of_equally_near_grids_a_larger_is_taken_if_the_image_fills_half_of_it() -> None:
    # 1.25 is as far from 1:1 as from 3:2; six tiles are filled by half from 602,112 pixels on
    assert SAIL.tiles(448, 560, 6)[0] == (1, 1)
    assert SAIL.tiles(800, 1000, 6)[0] == (2, 3)
    assert SAIL.tiles(400, 400, 4) == [(1, 1)] and SAIL.tiles(900, 900, 4) == [(2, 2), (1, 1)]


def test_a_second_scale_is_for_an_image_that_comes_alone() -> None:
    spec = ImageSpec(mode="tile", multi_scale=True)
    first, second, thumbnail = spec.tiles(896, 896)
    assert first == (2, 2) and thumbnail == (1, 1) and (first[0] % second[0] or first[1] % second[1])
    assert spec.tiles(896, 896, alone=False) == [(2, 2), (1, 1)]


def test_a_thumbnail_can_be_left_out_and_few_tiles_asked_for() -> None:
    assert ImageSpec(mode="tile", thumbnail=False).tiles(896, 896) == [(2, 2)]
    assert ImageSpec(mode="tile", min_tiles=2).tiles(200, 200)[0] != (1, 1)
    assert all(4 <= rows * cols <= 6 for rows, cols in tile_grids(4, 6))
    assert SAIL.tiles(448, 448 * 9, max_tiles=3)[0] == (1, 3)


def test_images_of_a_sample_share_the_tiles() -> None:
    assert [SAIL.tile_limit(count) for count in (1, 6, 7, 32, 65, 100)] == [10, 10, 9, 2, 1, 1]
    assert SAIL.tile_limit(1, 24) == 24 and SAIL.tile_limit(4, 24) == 16 and SAIL.tile_limit(1, 100) == 64


@pytest.mark.parametrize("mode", ["native", "tile"])
def test_a_shape_beyond_the_limit_is_refused(mode: str) -> None:
    spec = ImageSpec(mode=mode, max_aspect_ratio=50)
    spec.grids(50, 2500)
    for size in ((50, 2501), (2501, 50)):
        with pytest.raises(BadSample, match="image_aspect: .*50:1"):
            spec.grids(*size)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "tiles"}, "mode='tiles' is none of native, tile"),
        ({"max_pixels": 100}, "max_pixels=100 is less than one token"),
        ({"min_pixels": 5000, "max_pixels": 4000}, "min_pixels=5000 exceeds max_pixels=4000"),
        ({"max_aspect_ratio": 0.5}, "max_aspect_ratio=0.5 must be at least 1"),
        ({"mode": "tile", "tile_size": 450}, "tile_size=450 must be a multiple of a token's side, 28"),
        ({"min_tiles": 3, "max_tiles": 2}, "min_tiles=3 and max_tiles=2 must be 1 <= min <= max"),
        ({"max_total_tiles": 3}, "max_total_tiles=3 is less than max_tiles=10"),
    ],
)
def test_an_image_spec_says_what_is_wrong(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageSpec(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "all"}, "mode='all' is none of dynamic, uniform"),
        ({"fps": 0.0}, "fps=0.0 must be above 0"),
        ({"levels": (128, 256)}, r"levels=\[128, 256\] must be tokens a frame, at least one, falling"),
        ({"levels": ()}, r"levels=\[\] must be"),
        ({"max_tokens": 100}, "max_tokens=100 does not hold one frame of 128 tokens"),
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
    ],
)
def test_a_video_spec_says_what_is_wrong(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoSpec(**values)  # type: ignore[arg-type]
