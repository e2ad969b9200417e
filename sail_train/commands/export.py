"""`sail-train export`: a standalone Hugging Face folder, checked before it is handed out."""

from __future__ import annotations

import argparse
from pathlib import Path

from sail_train import dist


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="sail-train export",
        description="Writes the model of a run as a folder that transformers' Auto classes load.",
        epilog="example: sail-train export runs/tiny/mixed_rl out/tiny --format code --dtype bfloat16",
    )
    parser.add_argument("model", type=Path, help="a run directory or model folder")
    parser.add_argument("out", type=Path, help="the folder to make; it must not be there")
    parser.add_argument(
        "--format",
        choices=("sail", "code", "released"),
        default="sail",
        help="sail (default): loads after `import sail_train.auto`; code: the code travels with it, for "
        "trust_remote_code=True where sail_train is not installed; released: SAIL-VL2's own key names and config",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as it was saved")
    parser.add_argument("--shard-size", default="5GB", help="largest weight file (default: %(default)s)")
    options = parser.parse_args(arguments)
    dist.setup_logging()
    from sail_train.job.lineage import model_folder

    model_folder(str(options.model), role="model")  # a typo is answered before anything heavy is imported
    from sail_train.export.write import export

    export(options.model, options.out, options.dtype, format=options.format, shard_size=options.shard_size)
    return 0
