"""Evaluates a model of a run or a folder: reads the suites, asks, and writes down what came out.

`evaluate_run` is what the loops call at a stage's start ("before") and end ("after"): it fills evaluation.json,
appends the answers to samples.jsonl and keeps the images of some for the report. What a parent was already asked in
the same way is taken over rather than asked again. `evaluate_model` is the same for any saved model folder.

    evaluation.json {"after": {"metrics": {...}, "passes": {"read/greedy": {"asked", "metrics", "scores"}}}, "before"}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_train import dist
from sail_train.config import to_mapping
from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.engine.rundir import RunDir
from sail_train.eval.config import MODES, EvalConfig, SuiteConfig
from sail_train.eval.evaluate import EvalResult, PassResult, evaluate
from sail_train.eval.grading import prompt_text
from sail_train.loops.config import RunConfig
from sail_train.loops.shown import keep_images
from sail_train.rewards.config import VerifierConfig
from sail_train.types import Conversation

if TYPE_CHECKING:
    from sail_train.model.vlm import SailVLForConditionalGeneration
    from sail_train.processor.processor import SailVLProcessor

log = logging.getLogger(__name__)

FILE = "evaluation.json"

Suites = Mapping[str, Sequence[Conversation]]


def read_suites(config: EvalConfig) -> dict[str, list[Conversation]]:
    """The conversations of every suite that `config.modes` names, up to their limits."""
    return {
        suite: held_out(
            {suite: _source(config.suites[suite])},
            config.prompts_of(suite),
        )
        for suite in config.modes
    }


def _source(suite: SuiteConfig) -> SourceConfig:
    return SourceConfig(shards=suite.shards, format=suite.format, max_tiles=suite.max_tiles, fps=suite.fps)


def evaluate_model(
    folder: str | Path,
    config: EvalConfig,
    *,
    seed: int = 0,
    verifier: VerifierConfig | None = None,
    precision: str = "fp32",
) -> EvalResult:
    """Evaluates a saved model folder (or the model of a finished run); under torchrun the prompts are shared out.

    `precision` is that of the engine that trained it.
    """
    model, processor = load(folder, precision=precision)
    return _evaluate(model, processor, read_suites(config), config, seed=seed, verifier=verifier)


def load(folder: str | Path, *, precision: str = "fp32") -> tuple[SailVLForConditionalGeneration, SailVLProcessor]:
    """Model and processor of a model folder or of a finished run, on this rank's device.

    With an engine's `precision` "bf16" in bf16 on a GPU, as the stage itself evaluates; a CPU computes in fp32.
    """
    from sail_train.model.build import load_model
    from sail_train.model.folder import resolve
    from sail_train.processor.processor import load_processor

    bf16 = precision == "bf16" and dist.device().type == "cuda"
    model: Any = load_model(folder, dtype="bfloat16" if bf16 else "float32")
    return model.to(dist.device()), load_processor(resolve(folder))


def evaluate_run(
    model: Any, processor: SailVLProcessor, config: RunConfig, *, phase: str, suites: Suites | None = None
) -> dict[str, float]:
    """Metrics of `model` as `config.eval` asks, written to the run directory.

    Args:
        model: the plain module; under ZeRO 3 call it inside `TrainEngine.unsharded()`, on every rank.
        phase: "before" or "after" the stage. Before, what the parent run was asked after its own stage in the same
            way (same prompts, mode, seed, limits) is taken from its evaluation.json.
        suites: already read ones; None reads them.
    """
    if not config.eval.modes:
        return {}
    run = RunDir(config.run_dir)
    read = read_suites(config.eval) if suites is None else suites
    known = EvalResult(passes={})
    if phase == "before" and set(config.parents) == {"model"}:
        known = taken_over(config, Path(config.parents["model"]), read)
    todo = _without(config.eval, known.passes)
    result = _evaluate(model, processor, read, todo, seed=config.seed, verifier=config.rewards.verifier)
    passes = known.passes | result.passes
    whole = EvalResult(passes={name: passes[name] for name in _names(config.eval)}, samples=result.samples)
    if dist.is_main():
        _write(run, phase, whole, config, read)
    run.event("evaluation", phase=phase, asked=sorted(result.passes), taken_over=sorted(known.passes))
    dist.barrier()
    return whole.metrics


def taken_over(config: RunConfig, run_dir: Path, suites: Suites) -> EvalResult:
    """Those passes of `config` that the run in `run_dir` was asked after its stage in the same way; without samples."""
    written = read_evaluation(run_dir).get("after", {}).get("passes", {})
    known = {
        name: {"metrics": written[name]["metrics"], "scores": written[name]["scores"]}
        for name in _names(config.eval)
        if name in written and written[name]["asked"] == _asked(name, suites, config)
    }
    return EvalResult(passes={name: PassResult(**one) for name, one in dist.broadcast_json(known).items()})


def _evaluate(
    model: Any,
    processor: SailVLProcessor,
    suites: Suites,
    config: EvalConfig,
    *,
    seed: int,
    verifier: VerifierConfig | None,
) -> EvalResult:
    return evaluate(
        model, processor, suites, config, seed=seed, verifier=verifier, rank=dist.rank(), world=dist.world_size()
    )


def _names(config: EvalConfig) -> list[str]:
    return [f"{suite}/{mode}" for suite, modes in config.modes.items() for mode in modes]


def _without(config: EvalConfig, known: Mapping[str, PassResult]) -> EvalConfig:
    """`config` less the passes that are known."""
    modes = {suite: [mode for mode in modes if f"{suite}/{mode}" not in known] for suite, modes in config.modes.items()}
    return dataclasses.replace(config, modes={suite: rest for suite, rest in modes.items() if rest})


def _asked(name: str, suites: Suites, config: RunConfig) -> dict[str, Any]:
    """All that a pass's result depends on besides the model: two passes that agree here can be compared."""
    suite, _, mode = name.rpartition("/")
    limit = config.eval.prompts_of(suite)
    conversations = suites[suite][:limit]
    sampled = MODES[mode].temperature > 0
    return {
        "think": MODES[mode].think,
        "force": MODES[mode].force,
        "temperature": MODES[mode].temperature,
        "samples": config.eval.samples if sampled else 1,
        "seed": config.seed if sampled else None,
        "suite": suite if sampled else None,
        "max_new_tokens": config.eval.max_new_tokens,
        "blank_images": config.eval.suites[suite].blank_images,
        "max_tiles": config.eval.suites[suite].max_tiles,
        "fps": config.eval.suites[suite].fps,
        "verifier": {**to_mapping(config.rewards.verifier), "workers": None},
        "prompts": len(conversations),
        "content": _fingerprint(conversations),
    }


def _fingerprint(conversations: Sequence[Conversation]) -> str:
    digest = hashlib.sha256()
    for conversation in conversations:
        digest.update(json.dumps([conversation.key, prompt_text(conversation), conversation.answer]).encode())
        for file in (*conversation.images, *conversation.videos):
            digest.update(hashlib.sha256(file).digest())
    return digest.hexdigest()


def read_evaluation(run_dir: Path) -> dict[str, Any]:
    """evaluation.json of a run; empty if there is none."""
    path = run_dir / FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def metrics_before(run: RunDir) -> dict[str, float]:
    """The evaluation of what this run started from, whichever of its starts made it."""
    return read_evaluation(run.path).get("before", {}).get("metrics", {})


def _write(run: RunDir, phase: str, result: EvalResult, config: RunConfig, suites: Suites) -> None:
    """evaluation.json always; the answers only after the stage: those before are in the parent's run."""
    written = read_evaluation(run.path)
    written[phase] = {
        "metrics": result.metrics,
        "passes": {
            name: {"asked": _asked(name, suites, config), "metrics": one.metrics, "scores": one.scores}
            for name, one in result.passes.items()
        },
    }
    partial = run.path / f"{FILE}.partial"
    partial.write_text(json.dumps(written, indent=1))
    os.replace(partial, run.path / FILE)
    if phase == "after":
        files = keep_images(run.path, result.samples, suites, show=config.eval.show)
        for record in result.samples:
            shown = files.get((record["suite"], record["index"]))
            run.append("samples", record | ({"image_files": shown} if shown else {}))
