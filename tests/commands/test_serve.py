"""`sail-train serve` as a process: it says where it is, answers, and ends at Ctrl-C and at SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from sail_train.commands import serve

Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start(trained: Path) -> Iterator[Start]:
    """Starts the command and waits for the address that it tells."""
    started: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "sail_train.cli", "serve", str(trained), "--port", "0", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        told = process.stdout.readline()
        found = re.search(r"^run at (http://\S+/)  \(Ctrl-C ends\)$", told)
        assert found, (told, process.stderr.read() if process.stderr and process.poll() is not None else "")
        return process, found[1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_answers_and_ends_cleanly_at_a_signal(start: Start, number: signal.Signals, code: int) -> None:
    process, url = start("--max-tokens", "6", "--max-batch", "2", "--dtype", "float32")
    body = {"messages": [{"role": "user", "content": "SECRET question"}], "temperature": 0}
    reply = httpx.post(f"{url}v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] <= 6
    assert "<title>" in httpx.get(url).text
    with socket.create_connection(("127.0.0.1", int(url.split(":")[-1].strip("/")))):  # an idle line holds nothing up
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == code and "Traceback" not in err, err
    assert "POST /v1/chat/completions 200" in err and "SECRET" not in err and "WHOEVER" not in err


def test_an_open_address_is_warned_of_loudly(start: Start) -> None:
    process, url = start("--host", "0.0.0.0")
    assert url.startswith("http://0.0.0.0:")
    process.send_signal(signal.SIGTERM)
    assert "WHOEVER CAN REACH THIS ADDRESS CAN USE THE MODEL" in process.communicate(timeout=20)[1]


def test_a_port_in_use_is_told_before_the_model_is_loaded(trained: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: .*in use.*choose another"):
            serve.run([str(trained), "--port", str(port)])


def test_a_host_that_is_no_address_of_this_machine_is_told(trained: Path) -> None:
    with pytest.raises(ValueError, match="--host 192.0.2.1 "):
        serve.run([str(trained), "--host", "192.0.2.1", "--port", "0"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--port", "65536"], "--port 65536 must be from 0 to 65535"),
        (["--max-batch", "0"], "--max-batch 0 must be at least 1"),
        (["--max-tokens", "0"], "--max-tokens 0 must be at least 1"),
        (["--queue", "0"], "--queue 0 must be at least 1"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_a_wrong_option_is_told(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve.run(["nowhere", *options])
    assert told in capsys.readouterr().err
