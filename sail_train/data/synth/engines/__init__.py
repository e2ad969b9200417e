"""Rule engines: each draws pictures, asks about them, and computes the answers from what it drew.

`item` says what an engine is given and what it returns; `words`, `numbers`, `fonts`, `scene` and `distort` are what
engines are built of. The commands over them stand in `generate` (one level up).
"""

ENGINES: dict[str, str] = {
    "chart": "sail_train.data.synth.engines.chart",
    "geometry": "sail_train.data.synth.engines.geometry",
    "arithmetic": "sail_train.data.synth.engines.arithmetic",
    "counting": "sail_train.data.synth.engines.counting",
    "grounding": "sail_train.data.synth.engines.grounding",
    "difference": "sail_train.data.synth.engines.difference",
}
"""Module whose `make(rng, request) -> Item` draws a sample, and whose `WRITES` says whether text of the asked language
stands in its pictures, by the engine's name."""
