"""Random generators go on where they were, through JSON."""

import json
import random

import numpy as np
import torch

from sail_train.engine.rng import load_rng_state, rng_state


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch.randn(3).tolist()]


def test_a_restored_state_gives_the_same_draws() -> None:
    random.gauss(0, 1), np.random.randn()  # leaves half of a pair of normal draws waiting
    state = json.loads(json.dumps(rng_state()))
    expected = draw()
    assert draw() != expected
    load_rng_state(state)
    assert draw() == expected
