"""What docs/videos_and_boxes.md shows is taken from the page and run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from sail_train.visual import VideoSpec

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "videos_and_boxes.md").read_text()
VIDEO, BOXES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_page_reads_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "made.mp4"
    with av.open(str(path), "w") as made:
        stream = made.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 56, 84, "yuv420p"
        for _ in range(60):
            made.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((56, 84, 3), np.uint8), format="rgb24")))
        made.mux(stream.encode())
    exec(compile(VIDEO, "docs/videos_and_boxes.md", "exec"), {"data": path.read_bytes()})  # our own page
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16 and lines[0] == "[0.0 second] (84, 56)" and lines[-1] == "[2.0 second] (84, 56)"


def test_the_page_converts_a_box() -> None:
    names: dict[str, Any] = {}
    exec(compile(BOXES, "docs/videos_and_boxes.md", "exec"), names)  # our own page
    back = [names[name] for name in ("x1", "y1", "x2", "y2")]
    assert np.allclose(back, (64, 48, 320, 240), atol=0.5)


def test_the_pages_levels_are_the_defaults() -> None:
    levels, most = (
        [int(cell) for cell in re.findall(r"\d+", row)] for row in re.findall(r"^\| (?:tokens|most).*", PAGE, re.M)
    )
    assert tuple(levels) == VideoSpec().levels
    assert most == [VideoSpec().max_tokens // level for level in levels]
