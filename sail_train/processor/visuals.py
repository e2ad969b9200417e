"""A conversation's images and videos -> measured, from their headers alone -> their patches, when they are needed.

What an image costs is known before a pixel of it is decoded; what is decoded later must be what was promised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from sail_train.processor.frames import frames
from sail_train.processor.images import image_size, open_image
from sail_train.processor.patches import tiled, whole
from sail_train.processor.video import FramePlan, plan, probe
from sail_train.types import BadSample, Conversation, Visual
from sail_train.visual import ImageSpec, VideoSpec


def measure(conversation: Conversation, image: ImageSpec, video: VideoSpec) -> tuple[Visual, ...]:
    """The images and videos of a conversation, in the order of their parts.

    Raises:
        BadSample: "image_count", "video_count", "too_many_videos", or what a header shows to be unusable.
        ValueError: a video, without PyAV.
    """
    kinds = [part.type for message in conversation.messages for part in message.content if part.type != "text"]
    given = {"image": conversation.images, "video": conversation.videos}
    for kind, files in given.items():
        if (found := kinds.count(kind)) != len(files):
            raise BadSample(f"{kind}_count", f"{found} {kind} parts for {len(files)} {kind}s")
    if len(conversation.videos) > video.max_videos:
        raise BadSample("too_many_videos", f"{len(conversation.videos)} videos; at most {video.max_videos}")
    images, videos = iter(conversation.images), iter(conversation.videos)
    count = len(conversation.images)
    return tuple(
        measure_image(next(images), image, count=count, max_tiles=conversation.max_tiles)
        if kind == "image"
        else measure_video(next(videos), image, video, fps=conversation.fps)
        for kind in kinds
    )


def measure_image(data: bytes, spec: ImageSpec, *, count: int = 1, max_tiles: int | None = None) -> Visual:
    """One of a sample's `count` images, from its header."""
    return lay_out(image_size(data), spec, data=data, count=count, max_tiles=max_tiles)


def lay_out(
    size: tuple[int, int], spec: ImageSpec, *, data: bytes = b"", count: int = 1, max_tiles: int | None = None
) -> Visual:
    """One of a sample's `count` images, of `size` (height, width) in pixels."""
    if spec.mode == "native":
        return Visual(kind="image", data=data, grids=spec.grids(*size))
    tiles = spec.tiles(*size, spec.tile_limit(count, max_tiles), alone=count == 1)
    side = spec.tile_size // spec.patch_size
    pictures = sum(rows * cols for rows, cols in tiles)
    return Visual(kind="image", data=data, grids=((side, side),) * pictures, tiles=tuple(tiles))


def measure_video(data: bytes, image: ImageSpec, video: VideoSpec, *, fps: float | None = None) -> Visual:
    """A video, from its header."""
    planned = plan(probe(data), video, image, fps=fps)
    return Visual(kind="video", data=data, grids=planned.grids, seconds=planned.seconds)


def pixels(visual: Visual, spec: ImageSpec) -> np.ndarray:
    """(P, patch_dim) uint8 patches of all pictures of `visual`; BadSample if they are not what was measured."""
    if visual.kind == "image":
        return image_patches(open_image(visual.data), visual, spec)
    planned = FramePlan.of(visual.seconds, visual.grids, spec.patch_size)
    return np.concatenate([whole(frame, planned.grids[0], spec) for frame in frames(visual.data, planned)])


def image_patches(image: Image.Image, visual: Visual, spec: ImageSpec) -> np.ndarray:
    """(P, patch_dim) uint8 of a decoded image that was measured as `visual`."""
    if visual.tiles:
        return tiled(image, visual.tiles, spec)
    found = spec.grids(image.height, image.width)
    if found != visual.grids:
        raise BadSample("grid_mismatch", f"the header promised {visual.grids} patches, the pixels gave {found}")
    return whole(image, visual.grids[0], spec)


def join(patches: Sequence[np.ndarray], spec: ImageSpec) -> np.ndarray:
    """(P, patch_dim) uint8 of several visuals; (0, patch_dim) of none."""
    return np.concatenate([np.zeros((0, spec.patch_dim), dtype=np.uint8), *patches])
