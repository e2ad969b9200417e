"""What docs/models.md shows is taken from the page, composed, built without weights and counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sail_train.commands import model
from sail_train.job.compose import CONFIGS, Configs
from sail_train.job.model import compose_model
from sail_train.job.overrides import parse_tokens
from sail_train.model.counts import build_meta

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A config dir with the page's own preset."""
    (text,) = re.findall(r"```yaml\n# configs/model/mine.yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(text)
    return tmp_path


def test_the_pages_encoder_of_transformers_builds(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert model.run(["model=mine", "--config-dir", str(configs), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    hidden, inner, layers, patches = 1152, 4304, 27, (512 // 16) ** 2
    layer = 4 * (hidden + 1) * hidden + 2 * hidden * inner + inner + hidden + 4 * hidden
    rest = (3 * 16**2 + 1) * hidden + patches * hidden + 2 * hidden
    assert facts["parameters"]["vision"] == layers * layer + rest  # so400m without its pooling head
    assert facts["parts"]["vision"].startswith("siglip_vision_model, 27 layers")
    assert facts["images"][0]["patches"] == patches and facts["images"][0]["tokens"] == patches // 4


def test_the_pages_encoder_takes_a_tile_as_it_is(configs: Path) -> None:
    config = compose_model(Configs(folders=(CONFIGS, configs)), parse_tokens(["model=mine"]))
    assert config.image_spec.grids(512, 512) == ((32, 32),)
    assert build_meta(config).vision._native_grid() == (32, 32)
    assert list(config.vision.image_mean) == list(config.vision.image_std) == [0.5, 0.5, 0.5]
