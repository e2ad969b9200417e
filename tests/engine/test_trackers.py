"""wandb and tensorboard get the numbers, no secrets, and cannot stop training."""

import os
import sys
import types
from pathlib import Path

import pytest

from sail_train.engine import trackers
from sail_train.engine.config import LogConfig
from sail_train.engine.trackers import Trackers, redact

SECRET = "canary-5f2c"


def test_secrets_are_masked_and_the_rest_is_kept() -> None:
    settings = {
        "judge": {"api_key": SECRET, "url": "http://127.0.0.1"},
        "WANDB_API_KEY": SECRET,
        "password": SECRET,
        "auth_token": SECRET,
        "nested": [{"client_secret": SECRET}],
        "tokenizer": "kept",
        "max_new_tokens": 5,
        "image_token_id": 7,
        "key": "kept",
        "password_file": "kept",
        "api_keys": None,
    }
    masked = redact(settings)
    assert SECRET not in str(masked)
    assert masked["tokenizer"] == masked["key"] == "kept" and masked["max_new_tokens"] == 5
    assert masked["judge"] == {"api_key": "***", "url": "http://127.0.0.1"} and masked["api_keys"] is None


def test_nothing_is_started_unless_asked(tmp_path: Path) -> None:
    made = Trackers(tmp_path, LogConfig(), {})
    made.log({"loss": 1.0}, 1)
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    made = Trackers(tmp_path, LogConfig(tensorboard=True), {"api_key": SECRET})
    made.log({"loss": 1.5, "note": "not a number"}, 3)
    made.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes() and b"note" not in file.read_bytes()


def test_wandb_offline_writes_its_files_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET * 4)
    made = Trackers(tmp_path, LogConfig(wandb="offline"), {"judge": {"api_key": SECRET}, "lr": 0.25})
    made.log({"loss": 1.5}, 1)
    made.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert len((tmp_path / "wandb.id").read_text()) == 12
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


class Failing:
    """A tracker that breaks where it is told to."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.calls: list[str] = []

    def __call__(self, *_: object) -> "Failing":
        self._break("start")
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self._break("log")

    def close(self) -> None:
        self._break("close")

    def _break(self, where: str) -> None:
        self.calls.append(where)
        if where == self.where:
            raise ConnectionError(f"Authorization: Bearer {SECRET}")


@pytest.mark.parametrize(
    ("where", "calls"), [("start", ["start"]), ("log", ["start", "log"]), ("close", ["start", "log", "log", "close"])]
)
def test_a_tracker_that_fails_is_switched_off(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    calls: list[str],
) -> None:
    failing = Failing(where)
    monkeypatch.setattr(trackers, "Tensorboard", failing)
    made = Trackers(tmp_path, LogConfig(tensorboard=True), {})
    made.log({"loss": 1.0}, 1)
    made.log({"loss": 1.0}, 2)
    made.close()
    assert failing.calls == calls
    assert "tensorboard failed (ConnectionError) and is switched off" in caplog.text
    assert SECRET not in caplog.text


def test_wandb_that_is_not_installed_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    Trackers(tmp_path, LogConfig(wandb="online"), {}).close()
    assert "wandb failed (ModuleNotFoundError)" in caplog.text


def test_a_resumed_run_keeps_its_wandb_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    fake = types.SimpleNamespace(
        init=lambda **values: started.append(values) or types.SimpleNamespace(finish=lambda: None),
        Settings=lambda **values: values,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        Trackers(tmp_path, LogConfig(wandb="online", project="p"), {"a": 1}).close()
    assert started[0] == started[1]
    assert (started[0]["mode"], started[0]["project"], started[0]["resume"]) == ("online", "p", "allow")
    assert os.path.samefile(started[0]["dir"], tmp_path)
