"""An HTTP proxy in front of one server that goes wrong on demand."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    status: answered at once, the server never hears of it. lost: the server does it and the
    answer is cut. cut: the connection is cut before the server hears. delay_s: slow answer.
    """

    status: int = 0
    code: str = "InternalError"
    lost: bool = False
    cut: bool = False
    delay_s: float = 0.0


class FaultyProxy:
    """`plan` queues faults for the requests that `matches` says; `rule` decides for the rest."""

    def __init__(self, server: str) -> None:
        self.server = urlsplit(server).netloc
        self.reset()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self) -> None:
        """Well-behaved again."""
        self.planned: deque[Fault] = deque()
        self.matches: Callable[[str, str], bool] = lambda method, path: True
        self.rule: Callable[[str, str], Fault | None] = lambda method, path: None
        self.injected = 0

    def plan(self, *faults: Fault, on: str = "PUT") -> None:
        self.matches = lambda method, path: method == on
        self.planned.extend(faults)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _next(self, method: str, path: str) -> Fault | None:
        with self._lock:
            planned = self.planned and self.matches(method, path)
            fault = self.planned.popleft() if planned else self.rule(method, path)
            self.injected += fault is not None
            return fault

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _any(self) -> None:
                body = b"".join(self._body())
                fault = proxy._next(self.command, self.path) or Fault()
                time.sleep(fault.delay_s)
                if fault.cut:
                    self._cut()
                elif fault.status:
                    self._refuse(fault)
                else:
                    self._forward(body, fault.lost)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _any

            def _body(self) -> Iterator[bytes]:
                """As it came: chunks with their sizes and what trails them, which pyarrow sends."""
                if self.headers.get("Transfer-Encoding") != "chunked":
                    yield self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    return
                size = -1
                while size:
                    yield (line := self.rfile.readline())
                    if size := int(line.split(b";")[0], 16):
                        yield self.rfile.read(size + 2)
                while line.strip():
                    yield (line := self.rfile.readline())

            def _cut(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def _refuse(self, fault: Fault) -> None:
                body = f"<Error><Code>{fault.code}</Code></Error>".encode()
                self._answer(fault.status, [("Content-Length", str(len(body)))], body)

            def _forward(self, body: bytes, lost: bool) -> None:
                try:
                    status, headers, answer = self._ask_server(body)
                except (OSError, http.client.HTTPException):  # the server is down just now
                    return self._cut()
                return self._cut() if lost else self._answer(status, headers, answer)

            def _ask_server(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                server = http.client.HTTPConnection(proxy.server, timeout=60)
                with contextlib.closing(server):
                    server.putrequest(
                        self.command, self.path, skip_host=True, skip_accept_encoding=True
                    )
                    for name, value in self.headers.items():
                        if name.lower() not in ("connection", "expect"):
                            server.putheader(name, value)
                    server.endheaders(body)
                    response = server.getresponse()
                    return response.status, response.getheaders(), response.read()

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                if not any(name.lower() == "content-length" for name, _ in headers):
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        return Handler


@contextlib.contextmanager
def faulty_proxy(server: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(server)
    try:
        yield proxy
    finally:
        proxy.close()
