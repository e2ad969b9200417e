"""The loops that run a stage; which one, the stage's config says."""

LOOPS = {
    "supervised": "sail_train.loops.supervised:run",
    "rl": "sail_train.loops.rl:run",
    "soup": "sail_train.loops.soup:run",
    "sample": "sail_train.loops.sample:run",
}
"""Name to "module:function"; a function takes the `RunConfig` and returns an `Outcome`. Imported when used."""
