"""`sail-train report`: one self-contained HTML file of a recipe's runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="sail-train report",
        description="Writes one HTML file: stages and lineage, curves, mixtures, rewards, accuracy, samples.",
        epilog="example: sail-train report runs/tiny",
    )
    parser.add_argument("runs", type=Path, help="a recipe's directory")
    parser.add_argument("--out", type=Path, help="the file to write; default: report.html in that directory")
    options = parser.parse_args(arguments)
    from sail_train.report.build import build_report

    path = build_report(options.runs, output=options.out)
    Console().print(f"report: {path}", soft_wrap=True, highlight=False)
    return 0
