"""Rule engines: each draws pictures, asks about them, and computes the answers from what it drew.

`item` says what an engine is given and what it returns; `words`, `numbers`, `text`, `fonts`, `scene` and `figure` are
what engines are built of; modules named after an engine are parts of it. The command over them is `generate`, one level
up.
"""

ENGINES: dict[str, str] = {
    "chart": "sail_train.data.synth.engines.chart",
    "document": "sail_train.data.synth.engines.document",
    "geometry": "sail_train.data.synth.engines.geometry",
    "arithmetic": "sail_train.data.synth.engines.arithmetic",
    "counting": "sail_train.data.synth.engines.counting",
    "grounding": "sail_train.data.synth.engines.grounding",
    "difference": "sail_train.data.synth.engines.difference",
}
"""Module whose `make(rng, request) -> Item` draws a sample, and whose `WRITES` says whether text of the asked language
stands in its pictures, by the engine's name."""
