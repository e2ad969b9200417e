from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sail_train.processor.visuals import join, measure, pixels
from sail_train.types import BadSample, Conversation, Message, Part
from sail_train.visual import ImageSpec, VideoSpec

Make = Callable[..., Message]
MakeImage = Callable[..., bytes]
MakeVideo = Callable[..., bytes]
NATIVE = ImageSpec(patch_size=4, min_pixels=64, max_pixels=4096)
TILES = ImageSpec(patch_size=4, mode="tile", tile_size=16, max_tiles=4, max_total_tiles=6)
VIDEO = Part(type="video")


def sample(message: Message, **files: object) -> Conversation:
    return Conversation(key="0", source="test", messages=(message,), **files)  # type: ignore[arg-type]


def test_visuals_come_in_the_order_of_their_parts(
    make_message: Make, encoded_image: MakeImage, encoded_video: MakeVideo
) -> None:
    images, films = (encoded_image(24, 16), encoded_image(8, 8)), (encoded_video(), encoded_video(size=(48, 32)))
    conversation = sample(make_message("user", VIDEO, None, "a", None, VIDEO), images=images, videos=films)
    visuals = measure(conversation, NATIVE, VideoSpec(levels=(16,)))
    assert [visual.kind for visual in visuals] == ["video", "image", "image", "video"]
    assert [visual.data for visual in visuals] == [films[0], *images, films[1]]
    assert visuals[1].grids == ((4, 6),) and visuals[1].seconds == visuals[1].tiles == ()
    assert visuals[0].grids == ((6, 10),) * 16 or len(set(visuals[0].grids)) == 1
    assert len(visuals[0].seconds) == len(visuals[0].grids) == 16 and visuals[0].seconds[0] == 0.0
    for visual in visuals:
        assert pixels(visual, NATIVE).shape == (visual.num_patches, 48)
    assert visuals[0].grids[0] == visuals[3].grids[0][::-1]


def test_frames_are_those_of_their_times(make_message: Make, encoded_video: MakeVideo) -> None:
    spec = VideoSpec(mode="uniform", num_frames=3, frame_pixels=32 * 48)
    (visual,) = measure(sample(make_message("user", VIDEO), videos=(encoded_video(),)), NATIVE, spec)
    brightness = [part.mean() for part in np.split(pixels(visual, NATIVE), 3)]
    assert visual.seconds == (0.5, 1.5, 2.5) and brightness == pytest.approx([5 * 8, 15 * 8, 25 * 8], abs=6)


def test_the_samples_own_limits_go_before_the_models(
    make_message: Make, encoded_image: MakeImage, encoded_video: MakeVideo
) -> None:
    image, film = encoded_image(64, 16), encoded_video(count=100)
    conversation = sample(make_message("user", None), images=(image,))
    assert measure(conversation, TILES, VideoSpec())[0].tiles == ((1, 4), (1, 1))
    (fewer,) = measure(replace(conversation, max_tiles=2), TILES, VideoSpec())
    assert fewer.tiles == ((1, 2), (1, 1)) and len(fewer.grids) == 3
    (more,) = measure(replace(conversation, max_tiles=5, images=(encoded_image(80, 16),)), TILES, VideoSpec())
    assert more.tiles == ((1, 5), (1, 1))
    film_sample = sample(make_message("user", VIDEO), videos=(film,))
    counts = [len(measure(replace(film_sample, fps=fps), NATIVE, VideoSpec())[0].grids) for fps in (None, 2.0, 5.0)]
    assert counts == [16, 20, 50]


def test_a_samples_images_share_its_tiles(make_message: Make, encoded_image: MakeImage) -> None:
    images = (encoded_image(64, 16),) * 3
    visuals = measure(sample(make_message("user", None, None, None), images=images), TILES, VideoSpec())
    assert [visual.tiles for visual in visuals] == [((1, 2), (1, 1))] * 3
    double = replace(TILES, multi_scale=True)
    assert len(measure(sample(make_message("user", None), images=images[:1]), double, VideoSpec())[0].tiles) == 3
    pair = measure(sample(make_message("user", None, None), images=images[:2]), double, VideoSpec())
    assert [len(visual.tiles) for visual in pair] == [2, 2]


@pytest.mark.parametrize(
    ("parts", "files", "problem"),
    [
        ((None,), {}, "image_count: 1 image parts for 0 images"),
        ((VIDEO,), {}, "video_count: 1 video parts for 0 videos"),
        ((), {"videos": (b"v",)}, "video_count: 0 video parts for 1 videos"),
        ((VIDEO,), {"images": (b"i",)}, "image_count: 0 image parts for 1 images"),
        ((VIDEO,) * 9, {"videos": (b"v",) * 9}, "too_many_videos: 9 videos; at most 8"),
        ((VIDEO,), {"videos": (b"v",)}, "video_unreadable"),
        ((None,), {"images": (b"i",)}, "image_unreadable"),
    ],
)
def test_what_cannot_be_measured_is_a_bad_sample(
    make_message: Make, parts: tuple[Part | None, ...], files: dict[str, tuple[bytes, ...]], problem: str
) -> None:
    if problem == "video_unreadable":
        pytest.importorskip("av")
    with pytest.raises(BadSample, match=problem):
        measure(sample(make_message("user", "a", *parts), **files), NATIVE, VideoSpec())


def test_pixels_that_are_not_those_of_the_header_are_a_bad_sample(make_message: Make, encoded_image: MakeImage) -> None:
    (visual,) = measure(sample(make_message("user", None), images=(encoded_image(24, 16),)), NATIVE, VideoSpec())
    with pytest.raises(BadSample, match="grid_mismatch"):
        pixels(replace(visual, data=encoded_image(16, 24)), NATIVE)


def test_no_visuals_have_no_patches() -> None:
    assert join([], NATIVE).shape == (0, 48) and join([], NATIVE).dtype == np.uint8
