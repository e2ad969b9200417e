"""What every trained stage does around its work."""

from __future__ import annotations

from pathlib import Path

from sail_train.engine.rundir import RunDir
from sail_train.loops.stage import _written_config


def test_trackers_get_the_config_as_written_so_that_no_secret_reaches_them(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert _written_config(run) == {}
    (run.path / "config.yaml").write_text("rewards:\n  judge: {url: '${oc.env:JUDGE_URL}', api_key: '***'}\n")
    assert _written_config(run) == {"rewards": {"judge": {"url": "${oc.env:JUDGE_URL}", "api_key": "***"}}}
