"""Synthetic data that a laptop can learn from: real scanned digits, bar charts, shapes and text.

`scans` and `draw` make pictures, `thoughts` writes worked steps (and a hasty teacher's), `visual` and `text`
turn them into conversations, `sources` says which source holds what, `run` writes the shards.
Beside them `engines` draws charts, documents, geometry and more, in two languages; `generate` writes those.
Every answer is computed from what was drawn, never guessed.
"""
