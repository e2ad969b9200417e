"""The state of torch's, numpy's and Python's random generators, as JSON: saved and restored without pickle."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """This rank's generators as a JSON value."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "torch": bytes(torch.get_rng_state().tolist()).hex(),
        "numpy": [str(name), np.asarray(keys).tolist(), *(float(value) for value in rest)],
        "python": [version, list(words), gauss],
    }
    if torch.cuda.is_initialized():
        state["cuda"] = bytes(torch.cuda.get_rng_state().tolist()).hex()
    return state


def load_rng_state(state: dict[str, Any]) -> None:
    """Restores what `rng_state` gave; a GPU's state is ignored where there is none."""
    torch.set_rng_state(_bytes(state["torch"]))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), int(position), int(has_gauss), gauss))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
