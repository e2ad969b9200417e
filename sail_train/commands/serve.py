"""`sail-train serve`: a model behind an OpenAI-compatible endpoint and a page to talk to it.

The address is taken first, so that a port in use is told before a model is loaded; then the model, then requests,
until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from sail_train import dist
from sail_train.job.lineage import model_folder

if TYPE_CHECKING:
    from sail_train.serve.server import Server

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
GOODBYE_SECONDS = 2.0

EPILOG = """\
examples:
  sail-train serve runs/tiny/mixed_rl                     then open http://127.0.0.1:8000/
  sail-train serve out/model --port 9000 --max-batch 32 --max-tokens 8192
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"messages": [{"role": "user", "content": "What is 2 + 3?"}], "think": "on"}'
"""


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    dist.setup_logging()
    folder = model_folder(str(options.model), role="model")
    from sail_train.serve.server import Server

    try:
        server = Server(options.host, options.port)
    except (OSError, OverflowError) as error:
        raise ValueError(f"--host {options.host} --port {options.port}: {error}; choose another port") from None
    with server:
        try:
            return _serve(server, folder, options)
        except KeyboardInterrupt:
            logger.info("interrupted: stopped")
            return EXIT_INTERRUPTED


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sail-train serve",
        description="Serves a model: POST /v1/chat/completions as OpenAI's, GET / a page to talk to it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a run directory or model folder")
    parser.add_argument(
        "--host", default="127.0.0.1", help="anything but loopback lets others in: there is no password"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 on a GPU, else float32")
    parser.add_argument("--max-batch", type=int, default=8, help="completions written at once")
    parser.add_argument("--max-tokens", type=int, default=2048, help="of one completion at most, and by default")
    parser.add_argument("--queue", type=int, default=32, help="requests that may wait; more are told 503")
    options = parser.parse_args(arguments)
    if not 0 <= options.port < 2**16:
        parser.error(f"--port {options.port} must be from 0 to 65535")
    for name in ("max_batch", "max_tokens", "queue"):
        if (value := vars(options)[name]) < 1:
            parser.error(f"--{name.replace('_', '-')} {value} must be at least 1")
    return options


def _serve(server: Server, folder: Path, options: argparse.Namespace) -> int:
    """Loads the model and answers until a signal comes."""
    from sail_train.serve.request import Limits
    from sail_train.serve.service import load

    limits = Limits(max_tokens=options.max_tokens)
    service = server.service = load(
        folder, dtype=options.dtype, max_batch=options.max_batch, queue=options.queue, limits=limits
    )
    before = signal.signal(signal.SIGTERM, _terminate)
    service.worker.start()
    try:
        if not server.loopback:
            logger.warning(
                "--host %s: WHOEVER CAN REACH THIS ADDRESS CAN USE THE MODEL. There is no password and no encryption; "
                "put a proxy with both before it, or listen on 127.0.0.1 and tunnel (ssh -L)", options.host
            )  # fmt: skip
        Console(soft_wrap=True, highlight=False).print(f"{service.name} at {server.url}  (Ctrl-C ends)")
        server.serve_forever()
    finally:
        service.worker.stop()
        server.answering.wait(GOODBYE_SECONDS)  # those who were being answered are told
        signal.signal(signal.SIGTERM, before)
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(EXIT_TERMINATED)
