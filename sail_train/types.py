"""The values that cross a boundary between two parts of the framework, one frozen dataclass each.

In the order a sample flows: `RawSample` (bytes out of a shard) -> `Conversation` (what it says) ->
`Encoded` (token ids and the images and videos still undecoded) -> `Row` (a packed sequence of them) ->
`Batch` (tensors for one micro step) -> `Step` (all micro steps of one update); for generation
`Prompt` -> `Completion` -> `Score`.
Nothing here imports torch or another module of the package, so that `--help` stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that is not trained on (torch's and transformers' convention)."""

THINK_MODES = ("on", "off", "auto")
"""What a prompt may ask of the model: think, answer at once, or decide."""


class BadSample(ValueError):
    """A sample that cannot be used; the stream skips, counts and writes it down, nothing else catches it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        """Short and countable, e.g. "image_too_large", "too_long", "no_trained_token"."""
        self.detail = detail


class RunStopped(RuntimeError):
    """What ends a run in its midst and its user can mend: told in one line, where another failure has a traceback."""

    def __init__(self, message: str, records: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.records = tuple(records)
        """Bad samples of this rank that are not written down yet; for quarantine.jsonl."""


@dataclass(kw_only=True, slots=True)  # not frozen, which takes three times as long for every sample that is read
class RawSample:
    """The files of one webdataset key, undecoded."""

    key: str
    source: str
    shard: str
    offset: int
    """Byte offset of the sample's first member in its shard: where a resumed stream seeks to."""
    members: dict[str, bytes]
    """File bytes by extension after the key, e.g. {"json": b"...", "0.jpg": b"..."}."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of a message: a text, or the next image or video of the sample."""

    type: str
    """"text", "image" or "video"."""
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Message:
    role: str
    """"system", "user" or "assistant"."""
    content: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content if part.type == "text")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What a sample says; its images are compressed bytes until a row is built from it."""

    key: str
    source: str
    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()
    """Compressed image files, in the order of the image parts of the messages."""
    videos: tuple[bytes, ...] = ()
    """Compressed video files, in the order of the video parts of the messages."""
    max_tiles: int | None = None
    """Most tiles of one image; None: the model's limit. Set by the sample's source."""
    fps: float | None = None
    """Frames a second that are looked at of a video; None: the model's. Set by the sample's source."""
    answer: str | None = None
    """Ground truth that the verifier compares with."""
    verifier: str | None = None
    """Name in `sail_train.rewards.VERIFIERS`."""
    mode: str | None = None
    """"think", "direct" or None: whether the assistant's turn opens with a thought."""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last assistant turn: what a model is asked."""
        last = len(self.messages)
        if self.messages and self.messages[-1].role == "assistant":
            last -= 1
        return self.messages[:last]


@dataclass(frozen=True, kw_only=True)
class Visual:
    """An image or a video of a sample, measured but undecoded."""

    kind: str
    """"image" or "video"."""
    data: bytes
    """The compressed file."""
    grids: tuple[tuple[int, int], ...]
    """(patch rows, patch columns) of each picture that the vision encoder gets of it: one for an image at its own
    resolution, one per tile (the thumbnail last) for a tiled one, one per frame of a video."""
    seconds: tuple[float, ...] = ()
    """When each frame of a video is shown; empty for an image."""
    tiles: tuple[tuple[int, int], ...] = ()
    """(rows, columns) of tiles of each cut of a tiled image, the thumbnail's (1, 1) last; empty if shown whole."""

    @property
    def num_patches(self) -> int:
        return sum(rows * cols for rows, cols in self.grids)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A measured sample: token ids are final, images are still compressed bytes."""

    key: str
    source: str
    input_ids: np.ndarray
    """(T,) int32, image placeholders expanded."""
    labels: np.ndarray
    """(T,) int32: labels[t] is the token to predict *after* position t, or IGNORE_INDEX."""
    visuals: tuple[Visual, ...] = ()
    """Its images and videos, in the order in which they are shown."""

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """(patch rows, patch columns) of all pictures, in order."""
        return tuple(grid for visual in self.visuals for grid in visual.grids)

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_patches(self) -> int:
        return sum(rows * cols for rows, cols in self.grids)

    @property
    def num_trained(self) -> int:
        return int((self.labels != IGNORE_INDEX).sum())


@dataclass(frozen=True, kw_only=True)
class Row:
    """One packed sequence, and where its stream stands after it."""

    index: int
    """Number of the row in the run; it comes from stream `index % num_streams`."""
    samples: tuple[Encoded, ...]
    position: dict[str, Any]
    """JSON state of the row's stream after this row; what a checkpoint saves."""
    quarantined: tuple[dict[str, Any], ...] = ()
    """Bad samples met since the stream's previous row: {source, shard, key, reason, detail}."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of one micro step: the samples of its rows, one after the other, without padding."""

    input_ids: Tensor
    """(T,) int64."""
    labels: Tensor
    """(T,) int64, already shifted: the target of position t, IGNORE_INDEX where none."""
    position_ids: Tensor
    """(T,) int64, restarting at 0 with each sample."""
    cu_seqlens: Tensor
    """(num_samples + 1,) int32: where each sample starts, and T."""
    patches: Tensor
    """(P, patch_dim) uint8, all images of the batch; (0, patch_dim) without one."""
    grids: Tensor
    """(num_images, 2) int64: patch rows and columns of each image."""
    sources: tuple[str, ...]
    """Source of each sample."""
    keys: tuple[str, ...]
    """Key of each sample."""

    def to(self, device: Any) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "labels", "position_ids", "cu_seqlens", "patches", "grids")
        }
        return Batch(**moved, sources=self.sources, keys=self.keys)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one rank gets for one update: all its micro batches, and where its streams stand afterwards."""

    batches: tuple[Batch, ...]
    positions: dict[str, Any]
    """JSON state by stream number, of this rank's streams, after the step's rows."""
    fill: float
    """Used share of the rows' token capacity, 0..1."""
    quarantined: tuple[dict[str, Any], ...] = ()
    """Of the step's rows; written to quarantine.jsonl when the step is trained, so that a resume repeats none."""
    rows: int = 0
    """Of the rows that this rank read those that were not empty; 0 on all ranks once the data is exhausted."""
    costs: tuple[tuple[float, float], ...] = ()
    """Of each micro step: what the vision encoder and the rest cost, in the unit of the stream's `cost`."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One request to a generator."""

    uid: str
    """Unique in the call; with the seed it fixes what is sampled, whatever the batching."""
    input_ids: np.ndarray
    """(T,) int32, image placeholders expanded, a forced thought prefix included."""
    patches: np.ndarray
    """(P, patch_dim) uint8."""
    grids: tuple[tuple[int, int], ...] = ()


@dataclass(kw_only=True)
class Sampling:
    """How completions are drawn. Log-probs are always those of the distribution drawn from."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    n: int = 1
    """Completions per prompt."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")
        if self.n < 1:
            raise ValueError(f"n={self.n} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer of a generator."""

    uid: str
    token_ids: tuple[int, ...]
    """With the end token, if there is one."""
    logprobs: tuple[float, ...]
    """Log-prob of each token under the temperature-scaled distribution."""
    finish_reason: str
    """"stop" (end token) or "length"."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A verdict on one response."""

    value: float
    """0..1 (penalties are below 0); meaningless unless status is "ok" or "unparsable"."""
    status: str = "ok"
    """"ok", "unparsable" (the response could not be read: a wrong answer), "timeout" or "error" (the reward
    failed: the response is masked out of its group)."""
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.status in ("timeout", "error")
