"""What the data stream is made of: sources, and how their samples become rows and batches.

Pure dataclasses, no heavy import. Values are checked where they are owned: in `__post_init__`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sail_train.config import suggestion

PACKINGS = ("best_fit", "subset")
OVERLONG = ("quarantine", "split")
BALANCES = ("off", "node", "world")

BAD_SHARDS = ("stop", "skip")


@dataclass(kw_only=True)
class SourceConfig:
    """One dataset of a mixture."""

    shards: str | list[str] = ""
    """.tar files: a path, a glob, a brace pattern such as "a/{000..099}.tar", "@list.txt" (a file of one such a line),
    or a list of those. http://, https:// and s3:// are read through fsspec, see docs/data.md."""
    weight: float = 1.0
    """Share of the samples drawn from this source, relative to the other weights; 0 leaves the source out."""
    size: int | None = None
    """Samples, for `data.temperature`; null: as the dataset.json beside the shards says."""
    epochs: float | None = None
    """How often each stream reads its share; then the source leaves the mixture. Of the last 0.x of an epoch each
    sample is read with that chance. null: for ever."""
    max_tokens: int | None = None
    """Tokens of measured samples after which the source leaves the mixture, each stream having an equal part of them;
    null: no limit."""
    start_step: int = 0
    """First step whose rows draw from this source (see docs/data.md for what waits in buffers)."""
    stop_step: int | None = None
    """First step whose rows draw from it no more; null: never stops."""
    filter: list[str] = field(default_factory=list)
    """Conditions on the columns of the shards' indexes, such as "score_vir >= 3"; all must hold, else a sample is left
    out."""
    on_bad_shard: str = "stop"
    """What a shard that is missing, damaged or cannot be read after all tries does: "stop" the run, or "skip" what
    cannot be read of it, with those samples counted as bad (one where their number is not known). May change on
    resume."""
    format: str = "messages"
    """How a sample's files become a conversation: a name in `sail_train.data.FORMATS`."""
    max_bad: float = 0.05
    """Bad samples that each rank puts up with, of those that it reads itself: below 1 a share of those read (after 100
    reads), from 1 on a count. May change on resume."""
    think_flag: float = 0.0
    """Share of the samples that ask for the mode they are of, in the chat style's way: Qwen3's /think and /no_think,
    SAIL-VL2's suffix, Seed1.5-VL's system prompts."""
    max_tiles: int | None = None
    """Most tiles of one image under `model.image.mode: tile`; null: the model's. SAIL-VL2 evaluates ChartQA and MMMU
    with 12, DocVQA with 18, InfoVQA and OCRBench with 24, the rest with 10."""
    fps: float | None = None
    """Frames a second that are looked at of a video under `model.video.mode: dynamic`; null: the model's. Seed1.5-VL
    takes 2 for MotionBench, MVBench, TOMATO and TVBench, 3 for Dream-1K, 1 otherwise."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} must be 0 (left out) or more")
        if self.max_bad < 0 or (self.max_bad > 1 and self.max_bad != int(self.max_bad)):
            raise ValueError(f"max_bad={self.max_bad} must be a share below 1 or a whole count from 1 on")
        if not 0 <= self.think_flag <= 1:
            raise ValueError(f"think_flag={self.think_flag} must be a share from 0 to 1")
        self._check_limits()
        if self.max_tiles is not None and self.max_tiles < 1:
            raise ValueError(f"max_tiles={self.max_tiles} must be at least 1, or null for the model's")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps={self.fps} must be above 0, or null for the model's")

    def _check_limits(self) -> None:
        """Of how much is read, and when."""
        for name, value in (("size", self.size), ("epochs", self.epochs), ("max_tokens", self.max_tokens)):
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be above 0, or null")
        if self.start_step < 0 or (self.stop_step is not None and self.stop_step <= self.start_step):
            raise ValueError(f"start_step={self.start_step} must be 0 or more, and stop_step={self.stop_step} after it")
        if self.on_bad_shard not in BAD_SHARDS:
            raise ValueError(f"on_bad_shard={self.on_bad_shard!r} is unknown; use one of {', '.join(BAD_SHARDS)}")

    @property
    def patterns(self) -> list[str]:
        return [self.shards] if isinstance(self.shards, str) else list(self.shards)


def check_named(place: str, sources: Mapping[str, SourceConfig]) -> None:
    """ValueError for a source without shards: most often it is another one's name, mistyped."""
    named = [name for name, source in sources.items() if source.shards != ""]
    for name in sources:
        if name not in named:
            raise ValueError(
                f"{place}.{name}: there is no such source, and a new one needs {place}.{name}.shards; "
                f"{suggestion(name, named)}"
            )


@dataclass(kw_only=True)
class DataConfig:
    """A mixture and the shape of its rows and batches.

    The order of the samples depends on the sources, `seq_length`, `max_patches`, the two buffers, how rows are packed
    and `num_streams`, and on the run's seed; never on ranks, threads or `micro_batch`.
    """

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name; names go to the metrics and to quarantine.jsonl."""
    temperature: float | None = None
    """T: sources are drawn in proportion to weight x size ** (1/T); 1 is by size, more evens out. null: by weight."""
    allow_mix_change: bool = False
    """Lets a resumed run go on with other weights, limits, steps or further sources; what changed is told."""
    index_dir: str | None = None
    """A local folder with the indexes of shards that stand where none can be written (`data index --index-dir`)."""
    seq_length: int = 4096
    """Token capacity of a packed row; a longer sample is refused ("too_long")."""
    max_patches: int = 16384
    """Vision patch capacity of a packed row; a sample with more is refused ("too_many_patches")."""
    num_streams: int = 8
    """Logical streams: row k of the run comes from stream k mod num_streams. A multiple of the ranks; part of the
    order."""
    batch_rows: int = 8
    """Rows of one update over all ranks; a multiple of ranks x micro_batch. Accumulation follows from it."""
    micro_batch: int = 1
    """Rows that one rank computes at a time: memory against speed, the same result."""
    shuffle_buffer: int = 256
    """Undecoded samples of one stream among which the next is drawn; 1 keeps the order of the shards."""
    pack_buffer: int = 32
    """Measured samples of one stream from which a row is filled. With "subset" 32 fill rows of 8k to 99.98%, and more
    cost memory and time for nothing; "best_fit" gets a quarter of a per cent from 256."""
    buffer_warning_gib: float | None = 8.0
    """GiB of samples waiting in the two buffers of a rank's streams from which the log warns, once; null: never. 8 GiB
    on each of 8 ranks are a quarter of the memory of a host with 256 GB. May change on resume."""
    packing: str = "subset"
    """How a row is filled: "subset" (the samples that fill it best together) or "best_fit" (the longest that fits,
    again and again: half a per cent to one and a half fewer useful tokens at 8k). Part of the order."""
    max_wait: int | None = None
    """Rows after which a waiting sample goes before all younger ones, if it fits; null: it does when it is the oldest,
    after `pack_buffer` rows at the latest. Part of the order."""
    overlong: str = "quarantine"
    """What becomes of a sample longer than `seq_length`: "quarantine" refuses it ("too_long"), "split" cuts text-only
    conversations between turns (docs/balance.md). Part of the order."""
    max_bad_in_a_row: int = 100
    """Bad samples in a row in one stream that stop the run, whatever the sources' budgets."""
    prefetch: int = 1
    """Steps built in the background while one trains; 0 builds each when it is asked for."""
    decode_threads: int = 1
    """Threads that decode the images of a row, in each process that decodes; more helps large images on free cores."""
    workers: int = 0
    """Processes of each rank that read, pack and decode its rows; 0 does it in the trainer. At most the streams that
    a rank has. The rows are the same."""
    balance: str = "off"
    """Ranks among which the rows of a step change hands, so that they cost the same: "off", "node" or "world"."""
    balance_group: int | None = None
    """Ranks in such a group, in place of those of a node or the world; divides their number."""

    def __post_init__(self) -> None:
        check_named("data.sources", self.sources)
        for name in ("seq_length", "max_patches", "num_streams", "batch_rows", "micro_batch", "shuffle_buffer",
                     "pack_buffer", "max_bad_in_a_row", "decode_threads"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0, or null")
        if self.buffer_warning_gib is not None and self.buffer_warning_gib <= 0:
            raise ValueError(f"buffer_warning_gib={self.buffer_warning_gib} must be above 0, or null (never)")
        if self.prefetch < 0:
            raise ValueError(f"prefetch={self.prefetch} must be 0 (none) or more")
        for name, choices in (("packing", PACKINGS), ("overlong", OVERLONG), ("balance", BALANCES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(choices)}")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must be 0 (the trainer reads) or more")
        if self.max_wait is not None and self.max_wait < 1:
            raise ValueError(f"max_wait={self.max_wait} must be at least 1 row, or null")
        if self.balance_group is not None and (self.balance_group < 1 or self.balance == "off"):
            raise ValueError(f"balance_group={self.balance_group} must be at least 1, with balance=node or world")
        if self.batch_rows % self.micro_batch:
            raise ValueError(f"batch_rows={self.batch_rows} is not a multiple of micro_batch={self.micro_batch}")
