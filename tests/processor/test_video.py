from __future__ import annotations

import math
import random

import pytest

from sail_train.processor.video import MAX_SECONDS, FramePlan, VideoInfo, plan, timestamp
from sail_train.types import BadSample
from sail_train.visual import ImageSpec, VideoSpec

SEED = ImageSpec(min_pixels=4 * 28 * 28, max_pixels=5120 * 28 * 28)
DYNAMIC = VideoSpec()
UNIFORM = VideoSpec(mode="uniform")
TILED = ImageSpec(mode="tile")


def info(frames: int, seconds: float, height: int = 2160, width: int = 3840) -> VideoInfo:
    return VideoInfo(height=height, width=width, seconds=seconds, frames=frames)


def tokens_a_frame(frames: FramePlan, spec: ImageSpec) -> int:
    return frames.height * frames.width // spec.unit**2


def random_info(rng: random.Random) -> VideoInfo:
    """Lengths from 0.1 s to 3 h, evenly on a logarithmic scale, and sizes that have next to nothing in common."""
    seconds = math.exp(rng.uniform(math.log(0.1), math.log(3 * 3600)))
    fps = rng.choice([1, 2, 5, 12.5, 23.976, 25, 30000 / 1001, 30, 59.94, 60, 120, rng.uniform(1, 120)])
    short = round(math.exp(rng.uniform(math.log(2), math.log(2160))))
    long = min(16_384, round(short * math.exp(rng.uniform(0, math.log(150)))))
    height, width = (short, long) if rng.random() < 0.5 else (long, short)
    return info(max(1, round(seconds * fps)), seconds, height, width)


@pytest.mark.parametrize("fps", [1.0, 2.0, 5.0])
def test_dynamic_sampling_holds_its_budget_from_a_tenth_of_a_second_to_three_hours(fps: float) -> None:
    rng = random.Random(f"budget {fps}")
    for _ in range(700):
        video = random_info(rng)
        frames = plan(video, DYNAMIC, SEED, fps=fps)
        count = len(frames.seconds)
        assert SEED.tokens_of(frames.grids) == count * tokens_a_frame(frames, SEED) <= DYNAMIC.max_tokens, video
        assert min(16, video.frames) <= count <= min(640, video.frames), video
        assert list(frames.seconds) == sorted(set(frames.seconds)), "each frame once, in order"
        assert frames.seconds[0] == 0 <= frames.seconds[-1] < video.seconds
        if count > 1:
            assert frames.seconds[-1] == pytest.approx((video.frames - 1) / video.fps), "from the first to the last"


@pytest.mark.parametrize("fps", [1.0, 2.0, 5.0])
def test_the_level_is_the_largest_that_fits(fps: float) -> None:
    rng = random.Random(f"level {fps}")
    for _ in range(700):
        video = info(max(1, round((seconds := rng.uniform(0.1, 1500)) * 30)), seconds)
        frames = plan(video, DYNAMIC, SEED, fps=fps)
        # 4K frames fill any level as far as whole tokens allow, so their size tells the level
        used = tokens_a_frame(frames, SEED)
        level = min(level for level in DYNAMIC.levels if level >= used)
        assert used >= 0.9 * level
        wanted = min(max(math.ceil(video.frames / video.fps * fps), 16), video.frames)
        larger = [bigger for bigger in DYNAMIC.levels if bigger > level]
        assert all(wanted * bigger > DYNAMIC.max_tokens for bigger in larger)
        if wanted * level <= DYNAMIC.max_tokens:
            assert len(frames.seconds) == wanted
        else:
            assert level == DYNAMIC.levels[-1] and len(frames.seconds) == DYNAMIC.max_tokens // level


@pytest.mark.parametrize(
    ("level", "most"), [(640, 128), (512, 160), (384, 213), (256, 320), (160, 512), (128, 640)]
)  # fmt: skip
def test_each_level_takes_as_many_frames_as_its_tokens_allow(level: int, most: int) -> None:
    """Arithmetic on the published levels and budget, one frame a second."""
    fitting, beyond = (plan(info(n * 30, float(n)), DYNAMIC, SEED) for n in (most, most + 1))
    assert len(fitting.seconds) == most
    assert 0.9 * level <= tokens_a_frame(fitting, SEED) <= level
    if level > 128:
        assert len(beyond.seconds) == most + 1 and tokens_a_frame(beyond, SEED) < tokens_a_frame(fitting, SEED)
    else:
        assert len(beyond.seconds) == 640, "what even the lowest does not hold is thinned"


def test_three_hours_are_thinned_evenly_from_end_to_end() -> None:
    frames = plan(info(3 * 3600 * 30, 3 * 3600.0), DYNAMIC, SEED)
    gaps = [b - a for a, b in zip(frames.seconds, frames.seconds[1:], strict=False)]
    assert len(frames.seconds) == 640 and frames.seconds[0] == 0 and frames.seconds[-1] > 3 * 3600 - 1
    assert max(gaps) - min(gaps) < 1.1 and sum(gaps) / len(gaps) == pytest.approx(3 * 3600 / 639, rel=1e-3)


def test_a_short_video_gives_sixteen_frames_or_all_it_has() -> None:
    assert len(plan(info(300, 10.0), DYNAMIC, SEED).seconds) == 16
    assert plan(info(3, 0.1), DYNAMIC, SEED).seconds == pytest.approx((0, 1 / 30, 2 / 30))
    assert plan(info(1, 0.04), DYNAMIC, SEED).seconds == (0.0,)


def test_the_asked_rate_goes_before_the_specs() -> None:
    video = info(1800, 60.0)
    assert [len(plan(video, DYNAMIC, SEED, fps=fps).seconds) for fps in (None, 1.0, 2.0, 5.0)] == [60, 60, 120, 300]
    with pytest.raises(ValueError, match=r"fps=0.0 must be above 0"):
        plan(video, DYNAMIC, SEED, fps=0.0)


def test_no_more_frames_than_the_video_has() -> None:
    assert len(plan(info(60, 60.0), DYNAMIC, SEED, fps=5.0).seconds) == 60


def test_a_small_frame_is_not_enlarged_to_its_level() -> None:
    frames = plan(info(300, 10.0, 240, 320), DYNAMIC, SEED)
    assert (frames.height, frames.width) == SEED.resize(240, 320) == (252, 308)


def test_the_budget_goes_before_the_least_size_of_images_and_the_least_frames() -> None:
    rng = random.Random(5)
    for _ in range(1000):
        lowest = rng.choice([1, 2, 3, 7])
        spec = VideoSpec(levels=(lowest + 4, lowest), max_tokens=lowest * rng.randint(1, 30), min_frames=16)
        image = ImageSpec(patch_size=4, min_pixels=64 * rng.choice([1, 2, 4, 64]), max_pixels=64 * 64)
        video = info(rng.randint(1, 400), rng.uniform(0.1, 100), rng.randint(1, 9), rng.randint(1, 1500))
        if max(video.height, video.width) > 200 * min(video.height, video.width):
            continue
        frames = plan(video, spec, image)
        assert image.tokens_of(frames.grids) <= spec.max_tokens, (spec, image, video)
        assert min(frames.height, frames.width) >= image.unit


def test_uniform_frames_are_the_middles_of_equal_parts() -> None:
    frames = plan(info(480, 16.0), UNIFORM, TILED)
    assert frames.seconds == tuple(i + 0.5 for i in range(16))
    assert (frames.height, frames.width) == (448, 448) and frames.grids == ((32, 32),) * 16


def test_uniform_frames_of_a_shorter_video_are_all_it_has_once() -> None:
    assert plan(info(5, 5.0), UNIFORM, TILED).seconds == (0, 1, 2, 3, 4)


def test_uniform_native_frames_stay_under_the_frames_own_limit() -> None:
    frames = plan(info(480, 16.0), UNIFORM, SEED)
    assert len(frames.seconds) == 16
    assert 0.9 * 448 * 448 < frames.height * frames.width <= 448 * 448 and frames.width > 1.6 * frames.height


def test_uniform_frames_lie_within_the_video_and_differ() -> None:
    rng = random.Random(6)
    for _ in range(700):
        video = random_info(rng)
        frames = plan(video, UNIFORM, TILED)
        assert len(frames.seconds) == min(16, video.frames) == len(set(frames.seconds))
        assert list(frames.seconds) == sorted(frames.seconds) and 0 <= frames.seconds[0]
        assert frames.seconds[-1] < video.seconds


def test_dynamic_frames_need_native_images() -> None:
    with pytest.raises(ValueError, match='image.mode="tile" has no levels; video.mode="dynamic" needs "native"'):
        plan(info(10, 1.0), DYNAMIC, TILED)


def test_a_strip_is_refused_as_it_is_for_images() -> None:
    with pytest.raises(BadSample) as caught:
        plan(info(10, 1.0, 10, 4000), DYNAMIC, SEED)
    assert caught.value.reason == "image_aspect"


def test_a_plan_is_made_again_from_what_a_visual_keeps() -> None:
    frames = plan(info(480, 16.0, 480, 854), DYNAMIC, SEED)
    assert FramePlan.of(frames.seconds, frames.grids, SEED.patch_size) == frames


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "[0.0 second]"), (1.5, "[1.5 second]"), (59.96, "[60.0 second]"), (MAX_SECONDS, "[43200.0 second]")],
)
def test_timestamps_have_one_decimal(seconds: float, text: str) -> None:
    assert timestamp(seconds) == text
