"""Is there room for the model? Asked with made-up devices."""

from __future__ import annotations

from pathlib import Path

import pytest
from loops_tiny import SUPERVISED, make_job

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
