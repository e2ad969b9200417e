"""`sail-train eval`: a model against held-out shards, by the samples' own verifiers.

What is asked comes from the `eval` section of the run that made the model (its config.yaml), else of a data group;
`--suites`, `--modes` and `eval.key=value` change it. The figures end in a table and, with `--out`, in a JSON file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from sail_train import dist
from sail_train.config import choice, to_dataclass
from sail_train.eval.config import MODES, EvalConfig
from sail_train.job.compose import CONFIGS, Configs, read_yaml
from sail_train.job.lineage import model_folder, write_json, write_text
from sail_train.job.overrides import Request, parse_tokens

DEFAULT_MODES = "greedy,t1"

EPILOG = """\
examples:
  sail-train eval runs/tiny/rlvr                                  its own suites, greedy and at temperature 1
  sail-train eval runs/tiny/mixed_rl --suites steps --modes on,off,auto
  sail-train eval out/model data=tiny eval.limit=64 --out eval.json --samples answers.jsonl
  torchrun --nproc-per-node 2 -m sail_train.cli eval runs/tiny/rlvr
modes: """ + ", ".join(MODES)


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    dist.setup_logging()
    folder = model_folder(str(options.model), role="model")
    config = make_config(options, parse_tokens(options.tokens))
    from sail_train.loops.evaluation import evaluate_model

    try:
        result = evaluate_model(folder, config, seed=options.seed, precision=_precision(options.model))
    finally:
        dist.shutdown()
    if dist.is_main():
        Console().print(table(str(options.model), config, result.metrics))
        if options.out is not None:
            write_json(options.out, {"model": str(options.model), "seed": options.seed, "metrics": result.metrics})
        if options.samples is not None:
            lines = [json.dumps(sample, ensure_ascii=False) for sample in result.samples]
            write_text(options.samples, "\n".join([*lines, ""]))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sail-train eval",
        description="Scores a model on held-out shards: accuracy with its standard error, thinking, length.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a run directory or model folder")
    parser.add_argument("tokens", nargs="*", metavar="key=value", help="data=GROUP, data_dir=..., eval.*=...")
    parser.add_argument("--suites", help="names, comma-separated; default: those the run's stage was evaluated on")
    parser.add_argument("--modes", default=DEFAULT_MODES, help=f"comma-separated; default: {DEFAULT_MODES}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the metrics to this JSON file")
    parser.add_argument("--samples", type=Path, help="write every answer to this .jsonl file")
    parser.add_argument("--config-dir", action="append", default=[], type=Path, help="a folder of your own configs")
    return parser.parse_intermixed_args(arguments)


def make_config(options: argparse.Namespace, request: Request) -> EvalConfig:
    """What to ask: the run's own `eval` section or a data group's, changed by options and tokens."""
    values = _base(options, request)
    suites = values.get("suites") or {}
    if not suites:
        raise ValueError(f"{options.model} names no eval.suites; say data=GROUP, or eval.suites.NAME.shards=...")
    names = options.suites.split(",") if options.suites else list(values.get("modes") or suites)
    modes = options.modes.split(",")
    for name in names:
        choice("--suites", name, suites)
    for mode in modes:
        choice("--modes", mode, MODES)
    config: EvalConfig = to_dataclass(EvalConfig, {**values, "modes": dict.fromkeys(names, modes)}, path="eval")
    return config


def _base(options: argparse.Namespace, request: Request) -> dict[str, Any]:
    written = _run_of(options.model)
    if "data" in request.groups or written is None:
        configs = Configs(folders=(CONFIGS, *options.config_dir))
        # a group that does not stand at the root holds no eval section
        tree = OmegaConf.create(configs.load("data", request.groups.get("data", "tiny")))
    else:
        tree = OmegaConf.create(read_yaml(written / "config.yaml"))
    for item in request.assignments:
        if item.delete:
            raise ValueError(f"~{item.key}: nothing can be taken away here; choose with --suites")
        if not (item.key == "data_dir" or item.key.startswith("eval.")):
            raise ValueError(f"{item.key}={item.value}: only data_dir and eval.* can be set here")
        OmegaConf.update(tree, item.key, item.value, merge=item.value != {}, force_add=True)
    values = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(values, dict)
    return dict(values.get("eval") or {})


def _run_of(model: Path) -> Path | None:
    """The run directory that a model is of."""
    return next((path for path in (model, model.parent) if (path / "config.yaml").is_file()), None)


def _precision(model: Path) -> str:
    """That of the engine of the run that made the model; fp32 where no run did."""
    run = _run_of(model)
    engine = (read_yaml(run / "config.yaml") or {}).get("engine") if run else None
    return str((engine or {}).get("precision", "fp32"))


def table(name: str, config: EvalConfig, metrics: Mapping[str, float]) -> Table:
    """One line a suite and mode."""
    shown = Table(title=name, title_justify="left")
    shown.add_column("suite/mode", no_wrap=True)
    for column in ("prompts", "accuracy", "± se", "thinks", "followed", "tokens", "truncated"):
        shown.add_column(column, justify="right")
    for suite, modes in config.modes.items():
        for mode in modes:
            key = f"{suite}/{mode}"
            parts = ("_thinks", "_followed", "_tokens", "_truncated")
            row = [_number(metrics, f"{key}_n", 0), _number(metrics, key, 3), _number(metrics, f"{key}_se", 3)]
            shown.add_row(key, *row, *(_number(metrics, key + part, 1 if part == "_tokens" else 3) for part in parts))
    return shown


def _number(metrics: Mapping[str, float], name: str, digits: int) -> str:
    return f"{metrics[name]:.{digits}f}" if name in metrics else ""
