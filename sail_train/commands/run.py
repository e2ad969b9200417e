"""`sail-train run`: a recipe, one entry of it, or a stage by itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from sail_train import dist, train
from sail_train.job.compose import CONFIGS, Configs
from sail_train.job.job import resolve
from sail_train.job.overrides import Request, parse_tokens
from sail_train.job.state import Conduct
from sail_train.recipe.launcher import Call
from sail_train.recipe.runner import run_recipe

EPILOG = """\
examples:
  sail-train run recipe=tiny                            every stage in order; run again, it goes on where it was
  sail-train run recipe=tiny stage=align force=true     one entry, anew; the old run is kept aside
  sail-train run recipe=tiny train.max_steps=2 recipe_dir=runs/smoke --no-gates
  sail-train run stage=align parent=runs/tiny/vision    a stage by itself, in runs/adhoc/align
  sail-train run recipe=tiny launcher.nproc=2           two ranks, through torchrun
  sail-train run recipe=mine launcher=slurm             one batch job per entry
"""


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="sail-train run",
        description="Trains a recipe stage after stage: skips what is finished, goes on with what was begun.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_options(parser)
    parser.add_argument("--until", metavar="ENTRY", help="the last entry of the recipe to run")
    options = parser.parse_intermixed_args(arguments)
    dist.setup_logging()
    request = parse_tokens(options.tokens)
    configs = Configs(folders=(CONFIGS, *options.config_dir))
    if request.recipe is None:
        if options.until is not None:
            raise ValueError("--until needs recipe=NAME")
        return _stage(configs, request, options)
    try:
        return run_recipe(
            configs, request, _call(options), conduct=_conduct(request, options), until=options.until,
            gates=not options.no_gates,
        )  # fmt: skip
    finally:
        train.leave()


def _conduct(request: Request, options: argparse.Namespace) -> Conduct:
    return Conduct(force=request.force, explicit=request.stage is not None, ignore_code=options.ignore_code)


def _stage(configs: Configs, request: Request, options: argparse.Namespace) -> int:
    """A stage without a recipe, in this process."""
    try:
        job = resolve(configs, request)
        if job.launcher.kind != "local" or job.launcher.nproc > 1:
            raise ValueError(
                "a stage without a recipe runs as one rank; for more, torchrun -m sail_train.train, or sbatch "
                "scripts/slurm/train.sbatch, with the same overrides"
            )
        return train.run(job, _conduct(request, options))
    finally:
        train.leave()


def _call(options: argparse.Namespace) -> Call:
    ours = ("recipe=", "stage=", "force=")
    tokens = tuple(token for token in options.tokens if not token.startswith(ours))
    folders = [text for folder in options.config_dir for text in ("--config-dir", str(Path(folder).resolve()))]
    flags = [f"--{name}" for name in ("ignore-code", "no-gates") if vars(options)[name.replace("-", "_")]]
    return Call(tokens=tokens, options=(*folders, *flags))
