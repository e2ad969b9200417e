"""The small judge of the tiny recipe: the rules of `judge_rules` behind an OpenAI-compatible endpoint.

It makes the mixed reward run, and its client is tested against it, on a machine without another model. Serves
POST /v1/chat/completions and GET /v1/models on loopback only. `python -m sail_train.rewards.judge_server --port 8377`
runs it by itself; `JudgeServer` runs it in a thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from sail_train.rewards.judge_protocol import unwrap
from sail_train.rewards.judge_rules import Case, judge

logger = logging.getLogger(__name__)

MAX_BODY = 4 * 2**20


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._reply(200, {"object": "list", "data": [{"id": "rules", "object": "model"}]})
        else:
            self._reply(404, {"error": {"message": f"no such path {self.path}"}})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.path != "/v1/chat/completions" or length > MAX_BODY:
            self.close_connection = True  # the body stays unread
            self._reply(404 if length <= MAX_BODY else 413, {"error": {"message": f"cannot serve {self.path}"}})
            return
        try:
            reply = complete(json.loads(self.rfile.read(length)))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            self._reply(400, {"error": {"message": f"{type(error).__name__}: {error}"}})
            return
        self._reply(200, reply)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def complete(request: dict[str, Any]) -> dict[str, Any]:
    """The chat completion that grades the case in the last message. Raises ValueError if there is none."""
    verdict = judge(Case(**unwrap(request["messages"][-1]["content"])))
    return {
        "id": "verdict",
        "object": "chat.completion",
        "created": 0,
        "model": "rules",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": json.dumps(verdict)},
            }
        ],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


class JudgeServer:
    """The judge in a thread of this process; a context manager. Port 0 takes a free one."""

    def __init__(self, port: int = 0) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> JudgeServer:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the rule-based judge on loopback.")
    parser.add_argument("--port", type=int, default=8377)
    server = ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Handler)
    logging.basicConfig(level=logging.INFO)
    logger.info("judge at http://127.0.0.1:%d/v1", server.server_port)
    server.serve_forever()


if __name__ == "__main__":
    main()
