from __future__ import annotations

import pytest

from sail_train.job.compose import Configs
from sail_train.job.model import compose_model
from sail_train.job.overrides import parse_tokens
from sail_train.model.config import ModelConfig

CONFIGS = Configs()


def compose(*tokens: str) -> ModelConfig:
    return compose_model(CONFIGS, parse_tokens(tokens))


@pytest.mark.parametrize("name", CONFIGS.names("model"))
def test_every_preset_stands_by_itself(name: str) -> None:
    config = compose(f"model={name}")
    assert config.image_spec.unit == config.vision.patch_size * config.adapter.merge_size


def test_a_preset_that_extends_another_keeps_what_it_does_not_say() -> None:
    small, large = compose("model=sail_vl2_2b"), compose("model=sail_vl2_8b")
    assert large.vision == small.vision
    assert (small.language.hidden_size, large.language.hidden_size) == (2048, 4096)
    assert small.language.tie_word_embeddings and not large.language.tie_word_embeddings


def test_values_of_the_command_line_win() -> None:
    assert compose("model=tiny", "model.language.hidden_size=64").language.hidden_size == 64
    assert compose("model=tiny", "data_dir=elsewhere").language.tokenizer == "elsewhere/tokenizer"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "which model"),
        (["model=tini"], "did you mean 'tiny'"),
        (["model=tiny", "model.vison.path=x"], "model.vison: unknown key; did you mean 'vision'"),
        (["model=tiny", "train.max_steps=3"], "train.max_steps=...: a model by itself takes"),
        (["model=tiny", "data=tiny"], "data=...: a model by itself takes"),
        (["model=tiny", "stage=align"], "stage=...: a model by itself takes"),
        (["model=tiny", "model.attention=fast"], "attention='fast' is none of"),
        (["model=sail_vl2_2b", "model.image.tile_size=336"], "tiles of 24 x 24 patches"),
    ],
)
def test_what_is_wrong_is_named(tokens: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("...", r"\.\.\.")):
        compose(*tokens)


def test_tokens_of_an_image_are_those_of_the_reports() -> None:
    names = ("sail_vl2_2b", "sail_vl2_2b_anyres", "seed1_5_vl")
    tiled, anyres, seed = (compose(f"model={name}").image_spec for name in names)
    assert tiled.num_tokens(448, 448) == 256
    assert anyres.num_tokens(1792, 1792) == 4096
    assert anyres.grids(1792, 1792) == ((128, 128),)
    assert seed.num_tokens(28 * 64, 28 * 80) == 5120
    assert seed.num_tokens(10_000, 10_000) <= 5120
