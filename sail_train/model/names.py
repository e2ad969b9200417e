"""To which part of the model a parameter belongs; learning rates, freezing and loading by part rest on it."""

from __future__ import annotations

PARTS = {"vision": "vision.", "adapter": "adapter.", "language": "language_model."}
"""Part -> prefix of its parameters' names in `vlm.named_parameters()`."""


def part_of(name: str) -> str:
    """The part of a parameter, by its name with or without a leading "vlm."; ValueError if it has none."""
    bare = name.removeprefix("vlm.")
    for part, prefix in PARTS.items():
        if bare.startswith(prefix):
            return part
    raise ValueError(f"parameter {name!r} belongs to no part; names begin with one of {list(PARTS.values())}")
