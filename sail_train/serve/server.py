"""HTTP around a service: the listening socket, its connections and how many of them there may be.

Standard library only. What a web framework would add (routing four paths, an event loop for thousands of idle
connections) is not needed where one model writes a few answers at a time, and each dependency is one more thing to
keep safe; what it would not add, the checks in `handler`, would have to be written all the same.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
import threading
from contextlib import suppress
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from sail_train.serve.handler import Handler

if TYPE_CHECKING:  # it imports torch, and a port in use is to be told before
    from sail_train.serve.service import Service

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
GOODBYE_SECONDS = 2.0
"""How long the threads of open lines are waited for at the end."""


class Answering:
    """How many requests are being answered; a context manager for each."""

    def __init__(self) -> None:
        self._count = 0
        self._condition = threading.Condition()

    def __enter__(self) -> None:
        with self._condition:
            self._count += 1

    def __exit__(self, *error: object) -> None:
        with self._condition:
            self._count -= 1
            self._condition.notify_all()

    def wait(self, seconds: float) -> bool:
        """Until none is, or the time is over; whether none is."""
        with self._condition:
            return self._condition.wait_for(lambda: self._count == 0, seconds)


class Connections:
    """The open lines: how many there may be, and their end."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: set[socket.socket] = set()
        self._condition = threading.Condition()

    def enter(self, line: socket.socket) -> bool:
        """Whether there was room for one more."""
        with self._condition:
            if len(self._open) >= self.most:
                return False
            self._open.add(line)
            return True

    def leave(self, line: socket.socket) -> None:
        with self._condition:
            self._open.discard(line)
            self._condition.notify_all()

    def close(self, seconds: float) -> bool:
        """Closes all, and waits for their threads to see it; whether they have.

        Else the interpreter would end over threads that still read, and of eight such ends one was a SIGABRT.
        """
        with self._condition:
            for line in self._open:
                with suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)
            return self._condition.wait_for(lambda: not self._open, seconds)


class Server(ThreadingHTTPServer):
    """Listens from its making on; answers in `serve_forever`, for which `service` must be there."""

    service: Service
    daemon_threads = True
    block_on_close = False
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, host: str, port: int) -> None:
        """Port 0 takes a free one. OSError if the address is not to be had."""
        self.loopback = is_loopback(host)
        self.names = {"localhost", "127.0.0.1", "::1", host.lower()}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.answering = Answering()
        self._connections = Connections(MAX_CONNECTIONS)
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def server_bind(self) -> None:
        """Without the base class's search for the machine's name, which asks the network."""
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._connections.enter(request):
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.leave(request)

    def server_close(self) -> None:
        super().server_close()
        self._connections.close(GOODBYE_SECONDS)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A line that broke is nobody's fault; anything else is logged."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("a connection failed")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
