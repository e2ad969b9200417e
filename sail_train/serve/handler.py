"""One connection to the server: its headers checked, its requests routed, answers and errors written.

A browser reaches loopback from any page that it shows, so: no CORS header, the Host must be this machine's (a page
cannot rebind its name to 127.0.0.1), an Origin must be our own, a body must be declared JSON. What is logged is the
route, the status, counts and seconds, never what was said.
"""

from __future__ import annotations

import itertools
import json
import logging
import select
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_train.serve.protocol import Gone, RequestError, event

if TYPE_CHECKING:  # the service imports torch, and a port in use is to be told before
    from sail_train.serve.server import Server
    from sail_train.serve.service import Exchange

logger = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
"""How long a connection may say nothing, and a reader read nothing."""
BODY_SECONDS = 120.0
"""How long a whole body may take."""
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is read, so that its sender gets to read the answer."""

STATIC = Path(__file__).with_name("static")
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/static/style.css": ("style.css", "text/css; charset=utf-8"),
    "/static/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
"""Path -> file and type: a request's path chooses here and never names a file."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "sail-train"
    sys_version = ""
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True  # a token is a small packet that must not wait for the next

    def do_GET(self) -> None:
        self._answer(self._get)

    do_HEAD = do_GET
    """What GET answers, without its body."""

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, respond: Callable[[str], None]) -> None:
        """Runs a method's route; what it raises becomes an answer, and the log a line."""
        self._begun, self._status, self._notes = time.monotonic(), 0, ""
        self._unread = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        try:
            with self.server.answering:
                self._respond(respond)
        finally:
            if self._unread:  # what is left of a body would be taken for the next request
                self.close_connection = True
        seconds = time.monotonic() - self._begun
        logger.info("%s %s %s %.2fs%s", self.command, self._route(), self._status or "-", seconds, self._notes)

    def _respond(self, respond: Callable[[str], None]) -> None:
        try:
            self._check_headers()
            respond(self.path.partition("?")[0])
        except RequestError as error:
            self._error(error)
        except (Gone, ConnectionError, TimeoutError):
            self.close_connection = True
            self._notes += " left"
        except Exception:  # a fault of ours: the next request must find the server well
            logger.exception("a request failed")
            self.close_connection = True
            if not self._status:
                self._error(RequestError("the server failed; its log says how", status=500))

    def _get(self, path: str) -> None:
        service = self.server.service
        if path in PAGES:
            name, kind = PAGES[path]
            self._send(200, (STATIC / name).read_bytes(), kind)
        elif path == "/health":
            status, content = service.health()
            self._json(status, content)
        elif path == "/v1/models":
            self._json(200, service.models())
        elif path.startswith("/v1/models/"):
            self._json(200, service.model(path.removeprefix("/v1/models/")))
        else:
            self._refuse_path(path, "POST", ("/v1/chat/completions",))

    def _post(self, path: str) -> None:
        if path != "/v1/chat/completions":
            self._refuse_path(path, "GET", ("/health", "/v1/models", *PAGES))
        exchange = self.server.service.ask(self._body())
        images = len(exchange.question.conversation.images)
        try:
            if exchange.question.stream:
                self._stream(exchange)
            else:
                self._json(200, exchange.completion(self._gone))
        finally:
            exchange.leave()
            written = sum(exchange.tokens)
            self._notes = f" images={images} tokens={exchange.prompt_tokens}+{written}{self._notes}"

    def _refuse_path(self, path: str, method: str, known: tuple[str, ...]) -> None:
        if path in known:
            raise RequestError(f"{path} is asked by {method}", status=405, code="method_not_allowed")
        raise RequestError("there is nothing at this path", status=404, code="not_found")

    def _stream(self, exchange: Exchange) -> None:
        """Server-sent events. The first comes before the headers: an error until then has a status of its own."""
        chunks = exchange.chunks(self._gone)
        first = next(chunks)
        chunked = self.request_version != "HTTP/1.0"  # as some proxies speak: there the end of the line is the end
        kind = "text/event-stream; charset=utf-8"
        self._head(200, kind, {"Transfer-Encoding": "chunked"} if chunked else {"Connection": "close"})
        try:
            for data in itertools.chain([first], chunks):
                self._event(data, chunked)
        except RequestError as error:
            self._notes += f" {error.code}"
            self._event(event(error.content()), chunked)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: bytes, chunked: bool) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)

    def _gone(self) -> bool:
        """Whether the other side has closed: there is something to read, and it is the end."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        try:
            return bool(poll.poll(0)) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def _check_headers(self) -> None:
        """RequestError unless the request came here on purpose: see the module's docstring."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1:
            raise RequestError("a request has one Host header", code="bad_host")
        if self.server.loopback and hostname(hosts[0]) not in self.server.names:
            raise RequestError("this server answers to localhost alone", status=403, code="bad_host")
        origin = self.headers.get("Origin")
        if origin is not None and origin.lower() not in (f"http://{hosts[0]}".lower(), f"https://{hosts[0]}".lower()):
            raise RequestError("a page of another origin may not ask", status=403, code="bad_origin")

    def _body(self) -> bytes:
        """The declared bytes of a JSON body; RequestError if they are too many, too slow, or something else."""
        if self.headers.get_content_type() != "application/json":
            raise RequestError("Content-Type must be application/json", status=415, code="bad_content_type")
        if self.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise RequestError("a compressed body is not read", status=415, code="bad_content_encoding")
        declared = self.headers.get_all("Content-Length", [])
        if len(declared) != 1 or not (declared[0].isascii() and declared[0].isdigit()) or len(declared[0]) > 15:
            raise RequestError("Content-Length is missing or no number", status=411, code="bad_content_length")
        if "Transfer-Encoding" in self.headers:
            raise RequestError("a chunked body is not read", status=411, code="bad_content_length")
        most, length = self.server.service.limits.max_body, int(declared[0])
        if length > most:
            raise RequestError(f"the body has {length} bytes; at most {most} are read", status=413, code="too_large")
        return self._read(length)

    def _read(self, length: int) -> bytes:
        deadline, parts, missing = time.monotonic() + BODY_SECONDS, [], length
        while missing:
            part = self.rfile.read1(min(missing, 2**16))
            if not part:
                raise ConnectionResetError("the body ends early")
            if time.monotonic() > deadline:
                raise RequestError("the body took too long", status=408, code="timeout")
            parts.append(part)
            missing -= len(part)
        self._unread = False
        return b"".join(parts)

    def _error(self, error: RequestError) -> None:
        """OpenAI's form of an error."""
        headers = {"Retry-After": "1"} if error.status == 503 else {}
        try:
            self._json(error.status, error.content(), headers | ({"Connection": "close"} if self._unread else {}))
            if self._unread:
                self._linger()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _linger(self) -> None:
        """Reads what is still coming: closing on unread bytes resets the line before the answer is read."""
        deadline = time.monotonic() + LINGER_SECONDS
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER_SECONDS)
            while time.monotonic() < deadline and self.connection.recv(2**16):
                pass
        except OSError:
            pass

    def _json(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content, ensure_ascii=False).encode(), "application/json", headers)

    def _send(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self._head(status, kind, {"Content-Length": str(len(data)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self._status = status
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers, **SECURITY_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()

    def _route(self) -> str:
        """The path if it is one of ours: another's may say anything."""
        path = self.path.partition("?")[0]
        known = (*PAGES, "/health", "/v1/models", "/v1/chat/completions")
        return path if path in known else "/v1/models/..." if path.startswith("/v1/models/") else "(unknown)"

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses (a malformed line, an unknown method), in the form of all other errors."""
        self.close_connection = True
        self.request_version = self.protocol_version  # of a malformed line: else the headers are left out
        status = 405 if code == 501 else code
        self._json(status, RequestError(message or "bad request", status=status).content(), {"Connection": "close"})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the base class would log paths."""


def hostname(host: str) -> str:
    """The name in a Host header, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
