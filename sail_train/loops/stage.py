"""What every stage that trains does around its work: evaluate the start, train, save the model, evaluate it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import yaml

from sail_train.engine.deepspeed import TrainEngine
from sail_train.engine.gather import gathered
from sail_train.engine.loop import Work, train
from sail_train.engine.rundir import RunDir
from sail_train.loops import setup
from sail_train.loops.balance import BalancedWork
from sail_train.loops.config import RunConfig
from sail_train.loops.evaluation import evaluate_run, metrics_before
from sail_train.loops.outcome import Outcome
from sail_train.model.router import Routers
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.processor import SailVLProcessor


def evaluate_start(
    vlm: SailVLForConditionalGeneration, processor: SailVLProcessor, config: RunConfig, run_dir: RunDir
) -> None:
    """Evaluates what the stage starts from, unless it was begun before: then the weights are further on already."""
    if config.eval.before and config.eval.modes and not run_dir.checkpoints.exists():
        with gathered(vlm):
            evaluate_run(vlm, processor, config, phase="before")


def train_stage(
    engine: TrainEngine,
    work: Work,
    vlm: SailVLForConditionalGeneration,
    processor: SailVLProcessor,
    config: RunConfig,
    run_dir: RunDir,
) -> Outcome:
    """Trains to the end or until asked to stop; a finished stage leaves its model folder and its evaluation.

    The experts of a mixture are balanced whatever the loop.
    """
    if routers := Routers(vlm.language_model):
        work = BalancedWork(work, routers, coefficient=config.model.language.router_aux_loss_coef)
    trained = train(
        engine,
        work,
        run_dir,
        config=config.train,
        log_config=config.log,
        shape=setup.model_shape(config, vlm),
        settings=_written_config(run_dir),
    )
    routers.close()
    outcome = Outcome(status=trained.status, steps=trained.steps, tokens=trained.tokens, seconds=trained.seconds)
    if trained.status == "finished":
        folder = setup.write_model(engine, vlm, processor, run_dir)
        with engine.unsharded() if config.eval.modes else nullcontext():  # whole weights may not fit, and for nothing
            after = evaluate_run(vlm, processor, config, phase="after")
        outcome = replace(outcome, metrics_before=metrics_before(run_dir), metrics_after=after, model_dir=folder)
    engine.close()
    return outcome


def _written_config(run_dir: RunDir) -> dict[str, Any]:
    """config.yaml as it was written: trackers get what a reader of the run directory gets, secrets masked."""
    path = run_dir.path / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}
