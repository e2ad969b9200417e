"""Ranks: who am I, start talking, reduce numbers, exchange JSON, log from rank 0.

Without torchrun a process is rank 0 of 1 and needs no port: its group lives on an in-memory store. `init` may be
called again by every stage of a process. Between ranks only float64 sums and JSON travel, never a pickle.
torch is imported inside the functions, so that importing this module is free.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import torch

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def rank() -> int:
    return _environment("RANK", 0)


def world_size() -> int:
    return _environment("WORLD_SIZE", 1)


def local_rank() -> int:
    return _environment("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Ranks on this node."""
    return _environment("LOCAL_WORLD_SIZE", 1)


def is_main() -> bool:
    """Whether this is rank 0, the one that writes files and logs."""
    return rank() == 0


def _environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise ValueError(f"environment variable {name}={value!r} must be a whole number; torchrun sets it")
    return int(value)


def device() -> torch.device:
    """This rank's device; DS_ACCELERATOR=cpu keeps a machine with GPUs on its CPU."""
    import torch

    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") != "cpu":
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def init(*, timeout_minutes: float = 30.0) -> None:
    """Joins the process group: NCCL on GPU, gloo on CPU. A second call does nothing.

    `timeout_minutes` is how long a rank waits for the others before it gives up.
    """
    import torch

    if torch.distributed.is_initialized():
        return
    backend = "gloo"
    if device().type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(local_rank())
    timeout = datetime.timedelta(minutes=timeout_minutes)
    if "MASTER_ADDR" in os.environ:
        torch.distributed.init_process_group(backend, timeout=timeout)
        return
    if world_size() > 1:
        raise ValueError(f"WORLD_SIZE={world_size()} without MASTER_ADDR; start several ranks through torchrun")
    torch.distributed.init_process_group(
        backend, store=torch.distributed.HashStore(), rank=0, world_size=1, timeout=timeout
    )


def shutdown() -> None:
    """Leaves the process group; the last thing a process does (DeepSpeed keeps handles to the group)."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def all_reduce_sums(values: Sequence[float]) -> list[float]:
    """Element-wise sums over ranks in float64: one collective, the same bits on every rank."""
    import torch

    if world_size() == 1 or not values:
        return [float(value) for value in values]
    init()
    tensor = torch.tensor(list(values), dtype=torch.float64, device=device())
    torch.distributed.all_reduce(tensor)
    return tensor.tolist()


def gather_objects(value: Any) -> list[Any]:
    """The JSON value of every rank, in rank order, on every rank."""
    import torch

    if world_size() == 1:
        return [json.loads(json.dumps(value))]
    init()
    mine = _encode(value)
    lengths = [torch.empty(1, dtype=torch.int64, device=mine.device) for _ in range(world_size())]
    torch.distributed.all_gather(lengths, torch.tensor([len(mine)], device=mine.device))
    padded = torch.zeros(max(int(length) for length in lengths), dtype=torch.uint8, device=mine.device)
    padded[: len(mine)] = mine
    gathered = [torch.empty_like(padded) for _ in range(world_size())]
    torch.distributed.all_gather(gathered, padded)
    return [_decode(row[: int(length)]) for row, length in zip(gathered, lengths, strict=True)]


def broadcast_json(value: Any) -> Any:
    """Rank 0's JSON value, on every rank; what the others pass is ignored."""
    import torch

    if world_size() == 1:
        return json.loads(json.dumps(value))
    init()
    data = _encode(value if is_main() else None)
    length = torch.tensor([len(data)], device=data.device)
    torch.distributed.broadcast(length, src=0)
    if not is_main():
        data = torch.empty(int(length), dtype=torch.uint8, device=data.device)
    torch.distributed.broadcast(data, src=0)
    return _decode(data)


def _encode(value: Any) -> torch.Tensor:
    import torch

    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device())  # (bytes,)


def _decode(data: torch.Tensor) -> Any:
    return json.loads(bytes(data.tolist()).decode())


def barrier() -> None:
    """Waits for every rank."""
    assert math.isfinite(all_reduce_sums([0.0])[0])


class _Stderr(logging.StreamHandler):
    """Looks sys.stderr up at each record: a live progress line replaces it while it draws."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def setup_logging(level: int = logging.INFO) -> None:
    """Our log goes to stderr from rank 0; other ranks speak from WARNING on and say their rank. Call it any time."""
    handler = _Stderr()
    prefix = "" if is_main() else f"[rank {rank()}] "
    handler.setFormatter(logging.Formatter(prefix + LOG_FORMAT, datefmt="%H:%M:%S"))
    package = logging.getLogger("sail_train")
    package.handlers = [handler]
    package.propagate = False
    package.setLevel(level if is_main() else max(level, logging.WARNING))
