"""DeepSpeed as we start it: its config from ours, quiet, without compiling anything, without leaving traces.

Every key that has a surprising default is written out; the reasons stand beside them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sail_train import dist
from sail_train.engine.config import EngineConfig

log = logging.getLogger(__name__)


def deepspeed_config(config: EngineConfig, *, accumulation: int) -> dict[str, Any]:
    """The mapping that `deepspeed.initialize` takes."""
    values: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": max(2, accumulation),  # we tell it where a step ends; at 1 offload keeps no sum
        "gradient_clipping": 0.0,  # its default clips at 1.0; we clip, alike at every stage
        "steps_per_print": None,
        "zero_force_ds_cpu_optimizer": False,  # its CPU Adam is compiled on first use
        "zero_optimization": _zero(config),
    }
    if config.precision == "bf16":
        values["bf16"] = {"enabled": True}
        values["data_types"] = {"grad_accum_dtype": "fp32"}
        values["communication_data_type"] = "fp32"  # else ranks are summed in bf16, whatever accumulates
    return values


def _zero(config: EngineConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "reduce_bucket_size": config.bucket_elements,
        "allgather_bucket_size": config.bucket_elements + config.bucket_elements % 2,  # it asserts an even number
        "overlap_comm": config.zero_stage > 0 and dist.device().type == "cuda",
        "memory_efficient_linear": False,  # ZeRO 3 would replace torch.nn.functional.linear for the whole process
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": dist.device().type == "cuda"}
    if config.offload_weights:
        zero["offload_param"] = {"device": "cpu", "pin_memory": dist.device().type == "cuda"}
    return zero


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def join(config: EngineConfig) -> None:
    """Imports DeepSpeed, quiet, and joins the process group if nobody has; a second call changes nothing."""
    dist.init(timeout_minutes=config.timeout_minutes)
    os.environ.setdefault("LOCAL_RANK", str(dist.local_rank()))  # it asserts the variable, also for one process
    if dist.device().type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it had to guess
        os.environ.setdefault("LOCAL_SIZE", "1")  # else ZeRO 3 forks numactl in every micro step to count devices
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # No op can be built, as far as it knows. Else it would compile shared-memory collectives for one to two minutes
    # (a killed build leaves a lock on which the next run waits for ever), and run gcc only to fill this table.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(torch.distributed.get_backend(), verbose=False)
    # torch's new names for two collectives that DeepSpeed calls by the old ones: one line per step and rank otherwise.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")


def start(
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: EngineConfig,
    *,
    accumulation: int,
    leaves: Sequence[torch.nn.Module] = (),
) -> Any:
    """A DeepSpeed engine around `module`, whose parameters may be in shares already (`partition`)."""
    join(config)
    import deepspeed
    from deepspeed.runtime import bf16_optimizer

    for leaf in leaves if config.zero_stage == 3 else ():
        deepspeed.utils.set_z3_leaf_module(leaf, True)
    with (
        # A check for Muon imports it, its decorators compile, and that imports inductor: 4 s for nothing.
        _replaced(torch, "compile", lambda function=None, **_: function or (lambda decorated: decorated)),
        # Prints memory reports after a garbage collection each: as long again.
        _replaced(bf16_optimizer, "see_memory_usage", lambda *_, **__: None),
    ):
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=deepspeed_config(config, accumulation=accumulation)
        )
    log.info("DeepSpeed %s, ZeRO %d, %s", deepspeed.__version__, config.zero_stage, config.precision)
    return engine


def stop(engine: Any) -> None:
    """Takes DeepSpeed's hooks off the module and the module out of DeepSpeed's globals."""
    from deepspeed.runtime.zero import parameter_offload

    engine.destroy()
    parameter_offload.FWD_MODULE_STACK[:] = [
        module for module in parameter_offload.FWD_MODULE_STACK if module is not engine.module
    ]
