"""A line now and then where nobody watches, one live line on a terminal."""

import io

import pytest

from sail_train.engine.progress import Progress


def record(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 2.5, "grad_norm": 0.123456, "tokens_per_s": 1234.4, **more}


def test_plain_lines_every_so_often_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="sail_train"), Progress(name="align", max_steps=7, log_every=3) as progress:
        for step in range(1, 8):
            progress.update(record(step, mfu=0.4567))
    assert [line.split("  ")[0] for line in caplog.messages] == ["step 3/7", "step 6/7", "step 7/7"]
    assert caplog.messages[0] == "step 3/7  loss 2.5000  grad 0.123  1234 tok/s  MFU 45.7%"


def test_a_terminal_gets_one_live_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress(name="align", max_steps=2, log_every=1) as progress:
        progress.update(record(1))
        progress.update(record(2))
    assert "align" in terminal.getvalue() and "loss 2.5000" in terminal.getvalue()
    assert caplog.messages == []


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert Progress(name="align", max_steps=2, log_every=1)._live is None
