"""Is there room for the model, asked with made-up devices; and what stands beside it under ZeRO 3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loops_tiny import RL, SUPERVISED, lines, make_job, start

from sail_train.engine import memory
from sail_train.loops import setup
from sail_train.model.counts import count_parameters


def test_a_model_that_no_device_holds_whole_is_refused_before_it_is_built(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_job(data, *SUPERVISED, "engine.zero_stage=2").config
    processor = setup.make_processor(config)
    vlm = setup.make_model(config, processor)
    needed = 4 * count_parameters(vlm)["total"]
    setup.check_whole(config, processor.vocab_size, needed, trained=True)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    monkeypatch.setattr(setup, "build_model", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(ValueError, match=r"parameters in fp32: .* set engine\.zero_stage=3 instead of 2"):
        setup.make_model(config, processor)
    with pytest.raises(ValueError, match=r"a reference policy \(rl\.kl_coef above 0\) need them whole"):
        setup.make_model(config, processor, trained=False)


def test_a_reference_under_zero_3_is_what_the_shares_are(data: Path, trained: Path, tmp_path: Path) -> None:
    """Evaluated before and after, gathered; the first update's distance from the reference is rounding."""
    asked = (*RL, f"parent={trained}", "train.max_steps=1", "rl.kl_coef=0.01", "eval.modes={basic: [greedy]}")
    assert start(data, *asked, "engine.zero_stage=3", f"run_dir={tmp_path / 'run'}") == 0
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(evaluation) == {"before", "after"}
    (line,) = lines(tmp_path / "run")
    assert line["update/kl_ref"] == pytest.approx(0.0, abs=1e-6)
