"""Servers of one folder on the loopback, which fail when they are told to: plain HTTP, and the S3 protocol."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Fault = Callable[[BaseHTTPRequestHandler], bool]
"""Answers a request wrongly and returns True, or returns False."""


class FolderServer:
    """Files below `folder`, by range. `faults` are tried in turn on each GET and HEAD and taken away when used up."""

    def __init__(self, folder: Path, *, s3: bool = False) -> None:
        self.folder = folder
        self.fault: Fault | None = None
        self.requests: list[tuple[str, str, str]] = []
        """(method, path with query, Range) of each."""
        self.secrets: list[str] = []
        handler = type("Handler", (_S3Handler if s3 else _Handler,), {"server_of": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_of: FolderServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        server = self.server_of
        server.requests.append((self.command, self.path, self.headers.get("Range", "")))
        if server.fault is not None and server.fault(self):
            return
        self.serve(body=body)

    def serve(self, *, body: bool) -> None:
        path = self.server_of.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            self.empty(404)
            return
        content = path.read_bytes()
        self.file(content, body=body)

    def file(self, content: bytes, *, body: bool, cut: int = 0) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        part, status = content, 200
        if asked:
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            part, status = content[start : end + 1], 206
            if start >= len(content):
                self.empty(416)
                return
        self.send_response(status)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{len(content)}"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.end_headers()
        if body:
            self.wfile.write(part[: len(part) - cut])
        if cut:
            self.close_connection = True

    def empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class _S3Handler(_Handler):
    """GET and HEAD of objects, and ListObjectsV2, path style; refuses whoever does not sign."""

    def serve(self, *, body: bool) -> None:
        if "AWS4-HMAC-SHA256" not in self.headers.get("Authorization", ""):
            self.empty(403)
            return
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self._list(query)
            return
        if (self.server_of.folder / unquote(urlsplit(self.path).path).strip("/")).is_dir():
            self.empty(200)  # there is such a bucket
            return
        super().serve(body=body)

    def _list(self, query: dict[str, list[str]]) -> None:
        bucket = unquote(urlsplit(self.path).path).strip("/")
        root, prefix = self.server_of.folder / bucket, query.get("prefix", [""])[0]
        found = sorted(p for p in root.rglob("*") if p.is_file() and str(p.relative_to(root)).startswith(prefix))
        entries = "".join(
            f"<Contents><Key>{p.relative_to(root)}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"1"</ETag><Size>{p.stat().st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>'
            for p in found
        )
        text = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{prefix}</Prefix><KeyCount>{len(found)}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def times(count: int, fault: Callable[[Any], None], *, method: str = "GET") -> Fault:
    """The first `count` requests of a method are answered by `fault`."""
    left = [count]

    def answer(handler: BaseHTTPRequestHandler) -> bool:
        if handler.command != method or left[0] <= 0:
            return False
        left[0] -= 1
        fault(handler)
        return True

    return answer


def slow(seconds: float) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return answer
