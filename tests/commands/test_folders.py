"""`sail-train export` and `sail-train report`: the commands around what other parts do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sail_train.commands import export, report


def test_export_writes_a_folder_once(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export.run([str(trained), str(out), "--dtype", "bfloat16"]) == 0
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="exists; give a new folder"):
        export.run([str(trained), str(out)])


def test_report_writes_one_file(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.run([str(run_dir.parent), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().lstrip().startswith("<!")
    assert "page.html" in capsys.readouterr().out
