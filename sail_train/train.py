"""The one process that trains a stage: alone, under torchrun, or called in turn by the recipe runner.

tokens -> job -> decide (rank 0, for all) -> config.yaml and lineage.json -> the loop -> outcome.json -> gate.
Exit codes: 0 finished (also: it was already), 2 something asked for is wrong, 3 the gate is shut, 75 asked to stop
and saved (start it again and it goes on); anything else is a failure with its traceback.
A run that its data or rewards stop ends with 2 as well, the bad samples of this rank written down first.

    python -m sail_train.train recipe=tiny stage=align
    torchrun --nproc-per-node 8 -m sail_train.train stage=align model=sail_vl2_2b train.max_steps=2
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sail_train import dist
from sail_train.config import choice
from sail_train.job import lineage, shards, state
from sail_train.job.compose import CONFIGS, Configs
from sail_train.job.config import Gate
from sail_train.job.job import Job, resolve
from sail_train.job.overrides import parse_tokens
from sail_train.job.state import FINISHED, Conduct
from sail_train.loops import LOOPS
from sail_train.types import RunStopped

EXIT_USAGE = 2
EXIT_GATE = 3
EXIT_SAVED = 75
"""As `sail_train.engine.signals` has it, which is not imported here: it may wait until something is trained."""

log = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The tokens and options that every command that composes a config takes."""
    parser.add_argument("tokens", nargs="*", metavar="key=value", help="recipe=, stage=, groups and values (Hydra's)")
    parser.add_argument("--config-dir", action="append", default=[], type=Path, help="a folder of your own configs")
    parser.add_argument("--ignore-code", action="store_true", help="take runs made by other code as they are")
    parser.add_argument("--no-gates", action="store_true", help="ask no gate, as in a smoke run of a few steps")


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what the arguments ask for and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sail_train.train",
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="example: torchrun --nproc-per-node 2 -m sail_train.train recipe=tiny stage=align",
    )
    add_options(parser)
    options = parser.parse_intermixed_args(arguments)
    dist.setup_logging()
    try:
        request = parse_tokens(options.tokens)
        job = resolve(Configs(folders=(CONFIGS, *options.config_dir)), request)
    except ValueError as error:
        return refuse(error)
    job.gate = None if options.no_gates else job.gate
    conduct = Conduct(force=request.force, explicit=True, ignore_code=options.ignore_code)
    try:
        return run(job, conduct)
    finally:
        leave()


def leave() -> None:
    """Leaves the process group, the last thing a process does; one that only skipped never imported torch."""
    if "torch" in sys.modules:
        dist.shutdown()


def refuse(error: ValueError) -> int:
    """Says what is wrong, once for all ranks, and how to exit."""
    if dist.is_main():
        sys.stderr.write(f"error: {error}\n")
    return EXIT_USAGE


def run(job: Job, conduct: Conduct) -> int:
    """Trains the job if it needs it, in this process; returns the exit code."""
    with contextlib.ExitStack() as stack:
        try:
            wanted = _agree(job, conduct, stack)
        except ValueError as error:
            return refuse(error)
        if wanted:
            return _train(job)
    log.info("%s is finished already", job.run_dir)
    return check_gate(job)


def _agree(job: Job, conduct: Conduct, stack: contextlib.ExitStack) -> bool:
    """Whether to train: rank 0 looks, locks and writes; the others hear what it found, an error too."""
    verdict: dict[str, Any] = {}
    if dist.is_main():
        try:
            stack.enter_context(state.locked(job.run_dir))
            verdict = {"train": state.decide(job, conduct)}
            if verdict["train"]:
                verdict["held"] = state.write_start(job)
        except ValueError as error:
            verdict = {"error": str(error)}
    if dist.world_size() > 1:
        # the group is made here, for the loop too, and so with the loop's patience
        dist.init(timeout_minutes=job.config.engine.timeout_minutes)
        verdict = dist.broadcast_json(verdict)
    if "error" in verdict:
        raise ValueError(verdict["error"])
    shards.hold(job.config.data, verdict.get("held", {}))
    return bool(verdict["train"])


def _train(job: Job) -> int:
    """The loop, then what it leaves; what the user can mend in the loop is told without a traceback."""
    module, _, function = choice("loop", job.config.loop, LOOPS).partition(":")
    try:
        outcome = getattr(importlib.import_module(module), function)(job.config)
    except (ValueError, RunStopped) as error:
        listed = _write_bad(job, error.records) if isinstance(error, RunStopped) and error.records else ""
        trace = job.run_dir / f"error-rank{dist.rank()}.txt"
        trace.write_text(traceback.format_exc())
        sys.stderr.write(f"error: {error}{listed}\n(traceback in {trace})\n")
        return EXIT_USAGE
    if dist.is_main():
        write_outcome(job, dataclasses.asdict(outcome))
    if outcome.status != FINISHED:
        log.info("%s: stopped and saved; the same command goes on from there", job.run_dir)
        return EXIT_SAVED
    return check_gate(job, metrics=outcome.metrics_after)


def _write_bad(job: Job, records: Sequence[Mapping[str, Any]]) -> str:
    """Adds bad samples that no step will write down any more to quarantine.jsonl, and says so.

    By whichever rank it is, since the others do not know: in one write at the file's end. A resumed run cuts the file
    back to its checkpoint, and meets these samples again.
    """
    path = job.run_dir / "quarantine.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return f" ({path} names the bad samples)"


def write_outcome(job: Job, outcome: dict[str, Any]) -> None:
    """outcome.json, last of all: once it says "finished" the run is."""
    folder = outcome["model_dir"]
    finished = outcome["status"] == FINISHED and folder is not None
    digest = lineage.model_hash(Path(folder)) if finished else None
    record = {"stage": job.name, "loop": job.config.loop, **outcome, "model_hash": digest}
    record["model_dir"] = str(folder) if folder is not None else None
    lineage.write_json(job.run_dir / "outcome.json", record)


def check_gate(job: Job, metrics: dict[str, float] | None = None) -> int:
    """The exit code that the job's gate asks for; written to events.jsonl by rank 0."""
    if job.gate is None:
        return 0
    if metrics is None:
        metrics = (state.outcome(job.run_dir) or {})["metrics_after"]
    shut = job.gate.check(metrics)
    if dist.is_main():
        _tell_gate(job, job.gate, metrics, shut)
    return EXIT_GATE if shut else 0


def _tell_gate(job: Job, gate: Gate, metrics: dict[str, float], shut: str | None) -> None:
    from sail_train.engine.rundir import RunDir

    value = metrics[gate.metric] if gate.metric in metrics else None
    RunDir(job.run_dir).event("gate", metric=gate.metric, floor=gate.min, value=value, passed=shut is None)
    if shut:
        sys.stderr.write(
            f"error: the gate after {job.name} is shut: {shut}. Its model is in {job.run_dir}/model; train it better "
            "(other values, force=true), or lower the gate's min in the recipe\n"
        )


if __name__ == "__main__":
    sys.exit(main())
