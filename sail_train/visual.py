"""How images and videos of given size become patches and tokens: the one place where processor and model meet.

An image is shown to the vision encoder as one or more pictures, each a grid of patches; `merge_size` squared patches
make one token of the language model. `ImageSpec` knows two ways: "native" resizes an image to whole multiples of a
token's side with its aspect ratio kept as nearly as that allows (Seed1.5-VL, arXiv 2505.07062, section 2.1.1; the
AnyRes models of SAIL-VL2); "tile" cuts it into square tiles and adds a thumbnail (SAIL-VL2, arXiv 2509.14033,
section 2; the dynamic tiling of InternVL, arXiv 2404.16821, section 3.3).
Row 0: plain arithmetic, so that data can be measured and planned without torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from sail_train.config import choice
from sail_train.types import BadSample

Grid = tuple[int, int]
"""Rows and columns: of patches in a picture, or of tiles in an image."""

IMAGE_MODES = {"native": "one picture of the image's own shape", "tile": "square tiles and a thumbnail"}
VIDEO_MODES = {"dynamic": "frame rate and resolution within a budget", "uniform": "a fixed number of frames"}


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """How an image of given size becomes pictures, patches and tokens."""

    patch_size: int = 14
    merge_size: int = 2
    mode: str = "native"
    """A name in `IMAGE_MODES`."""
    min_pixels: int = 28 * 28
    """native: smaller images are enlarged to at least this area."""
    max_pixels: int = 1792 * 1792
    """native: larger images are reduced to at most this area."""
    max_aspect_ratio: float = 200.0
    """Longer side over shorter side beyond which an image is refused."""
    tile_size: int = 448
    """tile: side of a tile in pixels."""
    min_tiles: int = 1
    max_tiles: int = 10
    """tile: most tiles of one image, the thumbnail not counted."""
    max_total_tiles: int = 64
    """tile: most tiles of all images of a sample together, thumbnails not counted; each gets its share."""
    thumbnail: bool = True
    """tile: whether an image of several tiles is also shown whole, in one tile."""
    multi_scale: bool = False
    """tile: whether an image that comes alone is also cut by a second grid, none of whose cuts repeats the first's."""

    def __post_init__(self) -> None:
        choice("mode", self.mode, IMAGE_MODES)
        if self.max_pixels < self.unit**2:
            raise ValueError(f"max_pixels={self.max_pixels} is less than one token ({self.unit}x{self.unit} pixels)")
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} exceeds max_pixels={self.max_pixels}")
        if self.max_aspect_ratio < 1:
            raise ValueError(f"max_aspect_ratio={self.max_aspect_ratio} must be at least 1 (a square)")
        if self.mode == "tile" and self.tile_size % self.unit:
            raise ValueError(f"tile_size={self.tile_size} must be a multiple of a token's side, {self.unit} pixels")
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise ValueError(f"min_tiles={self.min_tiles} and max_tiles={self.max_tiles} must be 1 <= min <= max")
        if self.max_total_tiles < self.max_tiles:
            raise ValueError(f"max_total_tiles={self.max_total_tiles} is less than max_tiles={self.max_tiles}")

    @property
    def unit(self) -> int:
        """Side in pixels of the square that becomes one token."""
        return self.patch_size * self.merge_size

    @property
    def patch_dim(self) -> int:
        return 3 * self.patch_size**2

    def resize(self, height: int, width: int, *, max_pixels: int | None = None) -> tuple[int, int]:
        """(height, width) in pixels to which a native image is resized: each side to the nearest multiple of `unit`;
        beyond a limit of area, both scaled to it and rounded to the side that respects it.

        BadSample "image_aspect" beyond `max_aspect_ratio`.
        """
        self._check_aspect(height, width)
        unit, largest = self.unit, self.max_pixels if max_pixels is None else max_pixels
        rows, cols = max(1, round(height / unit)), max(1, round(width / unit))
        if rows * cols * unit**2 > largest:
            rows, cols = self._shrunk(height, width, largest)
        elif rows * cols * unit**2 < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            rows, cols = math.ceil(height * scale / unit), math.ceil(width * scale / unit)
            if rows * cols * unit**2 > largest:  # the two limits are closer than one step of the grid
                rows, cols = self._shrunk(height, width, largest)
        return rows * unit, cols * unit

    def tiles(self, height: int, width: int, max_tiles: int | None = None, *, alone: bool = True) -> list[Grid]:
        """Grids (rows, columns) of tiles by which an image is cut; a grid of one tile and the thumbnail are (1, 1).

        Args:
            max_tiles: fewer, or for an evaluation more, than the model's limit.
            alone: whether it is the sample's only image (`multi_scale`).
        """
        self._check_aspect(height, width)
        most = max(self.min_tiles, self.max_tiles if max_tiles is None else max_tiles)
        first = self._closest(height, width, tile_grids(self.min_tiles, most))
        grids = [first]
        if self.multi_scale and alone and (others := tile_grids(self.min_tiles, most, unlike=first)):
            grids.append(self._closest(height, width, others))
        if self.thumbnail and sum(rows * cols for rows, cols in grids) > 1:
            grids.append((1, 1))
        return grids

    def tile_limit(self, images: int, max_tiles: int | None = None) -> int:
        """Most tiles of each of a sample's `images`: together they stay within `max_total_tiles`."""
        most = self.max_tiles if max_tiles is None else max_tiles
        return max(1, min(most, self.max_total_tiles // max(1, images)))

    def grids(self, height: int, width: int, max_tiles: int | None = None, *, alone: bool = True) -> tuple[Grid, ...]:
        """(patch rows, patch columns) of each picture of an image of (height, width) pixels."""
        if self.mode == "native":
            height, width = self.resize(height, width)
            return ((height // self.patch_size, width // self.patch_size),)
        side = self.tile_size // self.patch_size
        count = sum(rows * cols for rows, cols in self.tiles(height, width, max_tiles, alone=alone))
        return ((side, side),) * count

    def num_tokens(self, height: int, width: int, max_tiles: int | None = None, *, alone: bool = True) -> int:
        """Placeholders that the processor inserts and features that the model must produce."""
        return self.tokens_of(self.grids(height, width, max_tiles, alone=alone))

    def tokens_of(self, grids: tuple[Grid, ...]) -> int:
        return sum(rows * cols for rows, cols in grids) // self.merge_size**2

    def _shrunk(self, height: int, width: int, largest: int) -> Grid:
        """(rows, columns) of tokens of at most `largest` pixels."""
        unit, scale = self.unit, math.sqrt(height * width / largest)
        rows, cols = math.floor(height / scale / unit), math.floor(width / scale / unit)
        # a long strip, whose short side cannot shrink below one token
        most = largest // unit**2
        return min(max(1, rows), most), min(max(1, cols), most)

    def _closest(self, height: int, width: int, grids: tuple[Grid, ...]) -> Grid:
        """The grid of the nearest aspect ratio; among equals the larger, if the image fills over half of it."""
        best, nearest = grids[0], math.inf
        for rows, cols in grids:
            distance = abs(width / height - cols / rows)
            fills = height * width > 0.5 * self.tile_size**2 * rows * cols
            if distance < nearest or (distance == nearest and fills):
                best, nearest = (rows, cols), distance
        return best

    def _check_aspect(self, height: int, width: int) -> None:
        if (ratio := max(height, width) / min(height, width)) > self.max_aspect_ratio:
            raise BadSample("image_aspect", f"{width}x{height} is {ratio:.0f}:1; at most {self.max_aspect_ratio:g}:1")


@lru_cache(maxsize=256)
def tile_grids(least: int, most: int, *, unlike: Grid | None = None) -> tuple[Grid, ...]:
    """All (rows, columns) of `least` to `most` tiles, smallest first; none that divides `unlike` into whole tiles."""
    grids = [
        (rows, cols)
        for count in range(least, most + 1)
        for cols in range(1, count + 1)
        for rows in [count // cols]
        if rows * cols == count
    ]
    if unlike is not None:
        grids = [(rows, cols) for rows, cols in grids if unlike[0] % rows or unlike[1] % cols]
    return tuple(grids)


@dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """Which frames of a video are looked at, and how large."""

    mode: str = "dynamic"
    """A name in `VIDEO_MODES`. "dynamic": Seed1.5-VL's dynamic frame-resolution sampling (section 2.2); "uniform":
    SAIL-VL2's frames spread evenly, one tile or one picture each."""
    fps: float = 1.0
    """dynamic: frames a second; 2 and 5 are Seed's for temporal detail and for counting motion."""
    levels: tuple[int, ...] = (640, 512, 384, 256, 160, 128)
    """dynamic: tokens a frame, largest first; the largest whose frames fit the budget is taken."""
    max_tokens: int = 81_920
    """dynamic: tokens of all frames of a video."""
    min_frames: int = 16
    """dynamic: of a short video, as far as it has them."""
    num_frames: int = 16
    """uniform: frames."""
    frame_pixels: int = 448 * 448
    """uniform, with native images: area to which a frame is reduced."""
    max_videos: int = 8
    """Of one sample."""

    def __post_init__(self) -> None:
        choice("mode", self.mode, VIDEO_MODES)
        if self.fps <= 0:
            raise ValueError(f"fps={self.fps} must be above 0")
        if not self.levels or list(self.levels) != sorted(set(self.levels), reverse=True) or self.levels[-1] < 1:
            raise ValueError(f"levels={list(self.levels)} must be tokens a frame, at least one, falling")
        if self.max_tokens < self.levels[-1]:
            raise ValueError(f"max_tokens={self.max_tokens} does not hold one frame of {self.levels[-1]} tokens")
        for name in ("min_frames", "num_frames", "frame_pixels", "max_videos"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1")
