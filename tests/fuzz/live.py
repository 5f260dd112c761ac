"""The worker as a child process and the policy server behind real sockets, both spoken to badly.

Nothing here may end them: after each batch of inputs a good message must be answered, and a
server must answer it to whoever connects afresh.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from random import Random

import numpy as np
from vla_platform import remote, vla_eval
from vla_platform.serving import Listening, PolicyServer
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from envs import wire
from envs.api import Observation
from envs.child import Child
from tests.fuzz.damage import Target, damaged
from tests.fuzz.messages import (
    OBSERVATION,
    REQUESTS,
    ROW,
    asks,
    frame,
    judged_vla,
    openpi,
    received,
    request,
    sound,
    vla,
)

PATIENCE_S = 10.0
EVERY = 200
"""Inputs from one good message to the next."""


class Worker:
    """A real worker of the tabletop's; replaced where its stream's framing was lost."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.count = 0

    def fresh(self) -> Child:
        child = Child(sys.executable, "tabletop", {})
        child.ask(REQUESTS[4], "ready", PATIENCE_S, lambda reply: None)
        return child

    def check(self, data: bytes) -> str:
        """A message in a sound frame: answered, and the next one too."""
        self.child = self.child or self.fresh()
        self.count += 1
        self.child.sock.settimeout(PATIENCE_S)
        self.child.sock.sendall(data)
        reply = wire.receive(self.child.sock, time.monotonic() + PATIENCE_S)
        if self.count % EVERY == 0:
            self.child.ask(REQUESTS[0], "observation", PATIENCE_S, wire.observation_of)
        if reply.kind == "error":
            assert reply.data["error"].strip()
            return "error"
        assert sound(received(data)), f"{data[:300]!r} was answered with {reply.kind}"
        return "accepted"

    def check_end(self, data: bytes) -> str:
        """Any bytes, and then nothing more: the worker ends in order, and another one serves."""
        child, self.child = self.child or self.fresh(), None
        child.sock.settimeout(PATIENCE_S)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            child.sock.sendall(data)
            child.sock.shutdown(socket.SHUT_WR)
        replies = []
        with contextlib.suppress(wire.ConnectionClosed):
            while True:
                replies.append(wire.receive(child.sock, time.monotonic() + PATIENCE_S).kind)
        code = child.popen.wait(PATIENCE_S)
        child.kill()
        assert code == 0, f"the worker ended with {code}: {child.tail.quoted()}"
        return "error" if "error" in replies else "answered" if replies else "ended"

    def close(self) -> None:
        child, self.child = self.child, None
        if child is not None:
            child.close()


class Constant:
    """A policy in numpy alone: the server is what is tried here."""

    batch_invariant = True

    def group(self, observation: Observation) -> int:
        return 0

    def act(self, observations: Sequence[Observation], length: int | None) -> np.ndarray:
        return np.stack([np.full((4, 7), float(o.image.mean()) / 255) for o in observations])


class Server:
    """A policy server on this machine, and a line to it."""

    def __init__(self, path: str = "") -> None:
        self.path, self.count = path, 0
        self.url = ""
        self.line: ClientConnection | None = None
        self.server: Listening | None = None

    def start(self) -> str:
        if not self.url:
            declared = {"policy": "constant", "action_spec": asdict(ROW.action_spec)}
            server = PolicyServer(Constant(), np.asarray, declared, batch=4).listen("127.0.0.1", 0)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
            self.server = server
        return self.url

    def connected(self) -> ClientConnection:
        if self.line is None:
            self.line = connect(self.start() + self.path, compression=None, max_size=None)
            if not self.path:
                assert remote.unpack(self.line.recv(PATIENCE_S))["policy"] == "constant"
        return self.line

    def good(self) -> None:
        """A good message on a connection of its own."""
        with connect(self.start(), compression=None) as line:
            line.recv(PATIENCE_S)
            line.send(remote.pack(OBSERVATION))
            assert remote.unpack(line.recv(PATIENCE_S))["actions"].shape == (4, 7)

    def check(self, data: bytes) -> str:
        self.count += 1
        outcome = (self._vla_eval if self.path else self._openpi)(self.connected(), data)
        if self.count % EVERY == 0:
            self.good()
        return outcome

    def _openpi(self, line: ClientConnection, data: bytes) -> str:
        line.send(data)
        reply = line.recv(PATIENCE_S)
        if isinstance(reply, str):
            kind, _, said = reply.partition(": ")
            assert kind in ("BadRequestError", "ValueError") and said.strip(), reply
            return kind
        actions = remote.unpack(reply)["actions"]
        assert asks(data) and actions.shape == (4, 7) and np.isfinite(actions).all()
        return "accepted"

    def _vla_eval(self, line: ClientConnection, data: bytes) -> str:
        """Some messages have no answer; a hello has one always."""
        line.send(data)
        line.send(vla_eval.pack("hello", {}, 987_654))
        replies = [line.recv(PATIENCE_S)]
        if vla_eval.unpack(replies[0])[::2] != ("hello", 987_654):
            replies.append(line.recv(PATIENCE_S))
        assert vla_eval.unpack(replies[-1])[::2] == ("hello", 987_654)
        assert isinstance(replies[0], bytes)
        return judged_vla(data, replies[0] if len(replies) > 1 else None)

    def check_bytes(self, data: bytes) -> str:
        """Bytes from the first on: a handshake, then frames, any of it damaged."""
        self.count += 1
        host, port = self.start().removeprefix("ws://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := sock.recv(65_536):
                    answer += part
        if self.count % EVERY == 0:
            self.good()
        return answer.partition(b"\r\n")[0].decode("latin1")[:12] or "closed"

    def close(self) -> None:
        if self.line is not None:
            with contextlib.suppress(ConnectionClosed, OSError):
                self.line.close()
        if self.server is not None:
            self.server.shutdown()
        self.url, self.line, self.server = "", None, None


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def handshake(rng: Random) -> bytes:
    body = remote.pack(OBSERVATION)
    mask = b"\0\0\0\0"
    head = b"\x82\xfe" + len(body).to_bytes(2, "big") + mask
    close = b"\x88\x82" + mask + b"\x03\xe8"
    if rng.random() < 0.5:
        return damaged(rng, HANDSHAKE) + head + body + close
    return HANDSHAKE + damaged(rng, head + body + close)


WORKER, ENDING = Worker(), Worker()
OPENPI, VLA_EVAL, RAW = Server(), Server(vla_eval.PATH), Server()
TARGETS: tuple[Target, ...] = (
    Target("worker process", request, WORKER.check, WORKER.close),
    Target("worker process, its end", frame, ENDING.check_end, ENDING.close),
    Target("policy server", openpi, OPENPI.check, OPENPI.close),
    Target("policy server, vla-eval", vla, VLA_EVAL.check, VLA_EVAL.close),
    Target("policy server, its socket", handshake, RAW.check_bytes, RAW.close),
)
