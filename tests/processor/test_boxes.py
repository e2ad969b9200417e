from __future__ import annotations

import random
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from sail_train.processor.boxes import (
    MAX_FOUND,
    SAIL_SCALE,
    SEED_SCALE,
    bbox_text,
    find_boxes,
    find_points,
    pictures,
    point_text,
    ref_text,
    to_model,
    to_pixels,
    upright,
)
from sail_train.rewards.boxes import iou, parse_box
from sail_train.types import BadSample
from sail_train.visual import ImageSpec

NATIVE = ImageSpec(max_pixels=640 * 784)
TILED = ImageSpec(mode="tile")
MULTI_SCALE = ImageSpec(mode="tile", multi_scale=True)


def random_box(rng: random.Random, height: int, width: int) -> tuple[float, float, float, float]:
    x1, x2 = sorted(rng.uniform(0, width) for _ in range(2))
    y1, y2 = sorted(rng.uniform(0, height) for _ in range(2))
    return x1, y1, x2, y2


def sizes(rng: random.Random) -> tuple[int, int]:
    return rng.randint(20, 4000), rng.randint(20, 4000)


@pytest.mark.parametrize("scale", [SEED_SCALE, SAIL_SCALE])
def test_pixels_come_back_within_half_a_unit(scale: int) -> None:
    rng = random.Random(scale)
    for _ in range(1000):
        height, width = sizes(rng)
        box = random_box(rng, height, width)
        values = to_model(box, height, width, scale)
        assert all(isinstance(value, int) and 0 <= value <= scale for value in values)
        back = to_pixels(values, height, width, scale)
        for before, after, side in zip(box, back, (width, height, width, height), strict=True):
            assert abs(before - after) <= 0.5 * side / scale * (1 + 1e-9)


@pytest.mark.parametrize("scale", [SEED_SCALE, SAIL_SCALE])
def test_a_models_numbers_come_back_exactly(scale: int) -> None:
    for value in range(scale + 1):
        assert to_model(to_pixels((value, value), 1080, 1920, scale), 1080, 1920, scale) == (value, value)


def test_the_edges_of_the_image_are_the_ends_of_the_scale() -> None:
    assert to_model((0, 0, 640, 480), 480, 640, SEED_SCALE) == (0, 0, 999, 999)
    assert to_model((0, 0, 640, 480), 480, 640, SAIL_SCALE) == (0, 0, 1000, 1000)
    assert to_model((320, 120), 480, 640, SAIL_SCALE) == (500, 250)


def test_what_lies_outside_the_image_moves_to_its_edge() -> None:
    assert to_model((-5, -1e30, 700, 1e308), 480, 640, SAIL_SCALE) == (0, 0, 1000, 1000)


@pytest.mark.parametrize("box", [(1.0, 2.0, 3.0), (float("nan"), 1.0), (1.0, float("inf"), 2.0, 3.0)])
def test_what_is_no_box_is_a_bad_sample(box: tuple[float, ...]) -> None:
    with pytest.raises(BadSample) as caught:
        to_model(box, 10, 10, SEED_SCALE)
    assert caught.value.reason == "bad_box"


def test_a_native_picture_shows_all_of_the_image_and_leads_back() -> None:
    rng = random.Random(1)
    for _ in range(300):
        height, width = sizes(rng)
        (picture,) = pictures(height, width, NATIVE)
        assert (picture.height, picture.width) == NATIVE.resize(height, width)
        box = random_box(rng, height, width)
        assert picture.back(picture.into(box)) == pytest.approx(box)
        seen = to_model(picture.into(box), picture.height, picture.width, SEED_SCALE)
        assert np.abs(np.subtract(seen, to_model(box, height, width, SEED_SCALE))).max() <= 1, "resizing moves nothing"


@pytest.mark.parametrize("spec", [TILED, MULTI_SCALE])
def test_tiles_stand_in_the_order_of_the_grids_and_cover_the_image(spec: ImageSpec) -> None:
    rng = random.Random(2)
    for _ in range(100):
        height, width = sizes(rng)
        made = pictures(height, width, spec)
        assert len(made) == len(spec.grids(height, width))
        if len(made) == 1:
            continue
        thumbnail = made[-1]
        assert (thumbnail.left, thumbnail.top, thumbnail.right, thumbnail.bottom) == (0, 0, width, height)
        rows, cols = spec.tiles(height, width)[0]
        area = sum((p.right - p.left) * (p.bottom - p.top) for p in made[: rows * cols])
        assert area == pytest.approx(height * width)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        (home,) = [p for p in made[: rows * cols] if p.left <= x < p.right and p.top <= y < p.bottom]
        inside = home.into((x, y))
        assert 0 <= inside[0] < spec.tile_size and 0 <= inside[1] < spec.tile_size
        assert home.back(inside) == pytest.approx((x, y))


def test_a_tiles_pixels_are_those_that_its_part_of_the_image_has() -> None:
    """2 x 3 tiles cut from a resized gradient: the colour at a tile's pixel is that of the place it leads back to."""
    height, width = 900, 1344
    made = pictures(height, width, TILED)
    assert TILED.tiles(height, width)[0] == (2, 3)
    across = Image.fromarray(np.broadcast_to(np.arange(width, dtype=np.float32), (height, width)).copy())
    resized = np.asarray(across.resize((3 * 448, 2 * 448), Image.Resampling.BICUBIC))
    for number, picture in enumerate(made[:-1]):
        row, col = divmod(number, 3)
        tile = resized[row * 448 : (row + 1) * 448, col * 448 : (col + 1) * 448]
        for x in (10, 200, 437):
            (original, _) = picture.back((x + 0.5, 224))
            assert tile[224, x] == pytest.approx(original - 0.5, abs=0.6)


def test_a_box_is_clipped_to_each_tile_and_its_parts_make_it_again() -> None:
    rng = random.Random(3)
    for _ in range(200):
        height, width = sizes(rng)
        box = random_box(rng, height, width)
        made = pictures(height, width, TILED)
        tiles = made[:-1] if len(made) > 1 else made
        parts = [picture.back(picture.clip(box)) for picture in tiles if picture.shows(box)]
        assert sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in parts) == pytest.approx(
            (box[2] - box[0]) * (box[3] - box[1])
        )
        union = tuple(function(column) for function, column in zip((min, min, max, max), zip(*parts)))  # noqa: B905
        assert union == pytest.approx(box)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_image(orientation: int) -> None:
    height, width, box = 20, 30, (4, 6, 9, 8)
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    turned = np.asarray(ImageOps.exif_transpose(image)) if orientation > 1 else pixels
    x1, y1, x2, y2 = (int(value) for value in upright(box, height, width, orientation))
    assert (turned[y1:y2, x1:x2] == 255).all() and (turned == 255).sum() == (x2 - x1) * (y2 - y1) == 10
    assert upright(box[:2], height, width, orientation) == pytest.approx(
        {1: (4, 6), 2: (26, 6), 3: (26, 14), 4: (4, 14), 5: (6, 4), 6: (14, 4), 7: (14, 26), 8: (6, 26)}[orientation]
    )


def test_texts_are_those_of_the_two_families() -> None:
    assert bbox_text((1, 2, 30, 400)) == "<bbox>1 2 30 400</bbox>"
    assert point_text((5, 999)) == "<point>5 999</point>"
    assert ref_text("the dog", [(1, 2, 3, 4)]) == "<ref>the dog</ref><box>[[1,2,3,4]]</box>"
    assert ref_text("dogs", [(1, 2, 3, 4), (5, 6, 7, 8)]) == "<ref>dogs</ref><box>[[1,2,3,4],[5,6,7,8]]</box>"


def test_a_text_of_another_number_of_values_is_refused() -> None:
    for write in (bbox_text, lambda values: ref_text("", [values])):
        with pytest.raises(ValueError, match="is not a box x1, y1, x2, y2"):
            write((1, 2, 3))
    with pytest.raises(ValueError, match="is not a point x, y"):
        point_text((1, 2, 3))


@pytest.mark.parametrize(
    "text",
    [
        "<bbox>10 20 30 40</bbox>", "It is at <bbox> 10,20, 30 ,40 </bbox>.", "<box>[[10,20,30,40]]</box>",
        "[10, 20, 30, 40]", "(10, 20, 30, 40)", "[[10.0 20.0 30.0 40.0]]", "\\boxed{[10,20,30,40]}",
        "<bbox>10 20 30, or rather [0.01, 0.02, 0.03, 0.04]",
    ],
)  # fmt: skip
def test_every_form_of_a_box_is_read(text: str) -> None:
    assert [found.box for found in find_boxes(text, SAIL_SCALE)] == [pytest.approx((10, 20, 30, 40))]


def test_what_was_written_is_read_again() -> None:
    rng = random.Random(4)
    for _ in range(200):
        boxes = [(rng.randint(0, 400), rng.randint(0, 400), rng.randint(500, 999), rng.randint(500, 999))
                 for _ in range(rng.randint(1, 4))]  # fmt: skip
        text = "so " + ref_text("a b", boxes) + " and " + bbox_text(boxes[0]) + point_text(boxes[0][:2])
        found = find_boxes(text, SEED_SCALE)
        assert [entry.box for entry in found] == [*boxes, boxes[0]]
        assert [entry.label for entry in found] == ["a b"] * len(boxes) + [""]
        assert find_points(text, SEED_SCALE) == [boxes[0][:2]]


def test_shares_of_the_image_are_brought_to_the_scale() -> None:
    assert find_boxes("[0.1, 0.25, 0.5, 1]", SAIL_SCALE)[0].box == pytest.approx((100, 250, 500, 1000))
    assert find_points("<point>0.5 0.25</point>", SEED_SCALE) == [pytest.approx((499.5, 249.75))]


def test_empty_boxes_are_left_out_as_the_verifier_does() -> None:
    for text in ("[5,5,5,9]", "[9,9,1,1]", "[0,0,0,0]"):
        assert find_boxes(text, SAIL_SCALE) == [] and parse_box(text) is None


def test_the_last_box_is_the_one_that_the_verifier_reads() -> None:
    rng = random.Random(5)
    for _ in range(200):
        numbers = [[rng.randint(-5, 1100) for _ in range(4)] for _ in range(3)]
        text = " then ".join(str(four) for four in numbers)
        found, verified = find_boxes(text, SEED_SCALE), parse_box(str(numbers[-1]))
        if verified is not None:
            assert found[-1].box == verified


def test_the_verifiers_overlap_is_the_same_in_pixels_and_in_either_scale() -> None:
    a, b = (100.0, 50.0, 300.0, 250.0), (150.0, 100.0, 350.0, 300.0)
    for scale in (SEED_SCALE, SAIL_SCALE):
        first, second = (to_model(box, 480, 640, scale) for box in (a, b))
        assert iou(first, second) == pytest.approx(iou(a, b), abs=5e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "<bbox>" * 50_000, "[" * 100_000, "[1" + " " * 100_000, "[1,2,3," * 30_000, "<ref>" * 50_000,
     "<bbox>10 20 30 40", "<ref>" + "x" * 100_000, "[99999999999,1,2,3]",
     "[nan, 1, 2, 3]", "\x00\ud800[1,2", "<point>" + "9" * 100_000, "[1,2,3,4" + "\n" * 100_000],
)  # fmt: skip
def test_untrusted_text_neither_raises_nor_takes_long(text: str) -> None:
    start = time.process_time()
    assert find_boxes(text, SEED_SCALE) == [] and find_points(text, SEED_SCALE) == []
    assert time.process_time() - start < 2


def test_random_text_never_raises() -> None:
    rng = random.Random(6)
    pieces = ["<bbox>", "</bbox>", "<box>", "</box>", "<ref>", "</ref>", "[", "]", "(", ")", ",", " ", "1", "-2", "0.5",
              "<point>", "</point>", "x", "\n"]  # fmt: skip
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=40))
        for found in find_boxes(text, SAIL_SCALE):
            assert found.box[0] < found.box[2] and found.box[1] < found.box[3]
        find_points(text, SAIL_SCALE)


def test_no_more_than_a_limit_is_read() -> None:
    assert len(find_boxes("[1,2,3,4]" * (MAX_FOUND + 5), SAIL_SCALE)) == MAX_FOUND
    assert len(find_points("<point>1 2</point>" * (MAX_FOUND + 5), SAIL_SCALE)) == MAX_FOUND
