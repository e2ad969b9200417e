"""The data and the stages of the end-to-end tests of the loops, spoilt here on purpose."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "loops"))

from loops_tiny import data, trained  # noqa: E402, F401
