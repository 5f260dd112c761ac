"""Policies served by openpi's protocol: a WebSocket server that batches across its clients.

A client is sent what the policy declares, then answered observation by observation. Whatever
a client does wrong is told to it in a text, and its line stays open for a better message.
At the path of `vla_eval` the same policy speaks that harness's protocol.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from envs.api import ActionSpec, Observation
from vla_platform import vla_eval
from vla_platform.artifacts import Checkpoint
from vla_platform.batcher import Batcher, Policy, checked
from vla_platform.remote import LARGEST, pack, unpack
from vla_platform.vla_eval import BadRequestError, frame_of

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
TOKEN = "VLA_SERVE_TOKEN"
"""Environment variable, because a command line can be read by every user of a machine."""
IMAGE_KEYS = ("image", "observation/image")
WRIST_KEY, STATE_KEY = "observation/wrist_image", "observation/state"
"""What openpi's LIBERO clients send besides; our own policies look at neither."""
WRIST = "wrist"
HEALTH = "/healthz"
SCHEMES = ("Api-Key ", "Bearer ")
"""What may stand before the token; openpi-client writes the first."""

Resize = Callable[[np.ndarray], np.ndarray]
"""Frames uint8 [B, H, W, 3] to the size that the policy sees."""


class PolicyServer:
    """One policy for any number of clients: one thread answers them all, another computes.

    declared: what every client is told first; `policy` in it is the policy's identity.
    token: what clients must show; None admits everyone. batch: observations per batch.
    horizon: actions of a chunk that vla-eval's benchmarks execute before the policy looks again;
    None for all.
    """

    def __init__(
        self,
        policy: Policy,
        resize: Resize,
        declared: Mapping[str, Any],
        token: str | None = None,
        batch: int = 16,
        threads: int = 1,
        horizon: int | None = None,
    ) -> None:
        self.declared, self.token, self.resize = dict(declared), token, resize
        self.horizon = horizon
        self.checkpoint = Checkpoint("served", 0, str(declared["policy"]))
        self.clients = 0
        self.batcher = Batcher(lambda _: policy, batch, threads, company=lambda: self.clients)

    def listen(self, host: str, port: int) -> Listening:
        """A bound server (port 0: any free one).

        ValueError for an address that other machines reach, unless there is a token.
        """
        check_address(host, self.token)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            bound = socket.create_server((host, port), family=family)
        except OSError as error:
            raise ValueError(
                f"cannot serve at {host}:{port} ({error.strerror}): --port 0 takes any free one"
            ) from error
        # Every line inherits it. asyncio, which would set it, takes this socket for no TCP one; a
        # second answer would wait 40 ms for the first one's acknowledgement.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Listening(self, bound)

    def admit(self, line: ServerConnection, request: Request) -> Response | None:
        if request.path == HEALTH:
            return line.respond(HTTPStatus.OK, "OK\n")
        shown = request.headers.get("Authorization", "")
        if self.token is None or is_token(shown, self.token):
            return None
        return line.respond(
            HTTPStatus.UNAUTHORIZED, "show the server's token: Authorization: Api-Key TOKEN\n"
        )

    async def client(self, line: ServerConnection) -> None:
        try:
            with self._counted():
                if line.request is not None and line.request.path == vla_eval.PATH:
                    await self._as_vla_eval(line)
                else:
                    await self._as_openpi(line)
        except ConnectionClosed as error:
            log.info("a client left: %s", error)

    async def _as_openpi(self, line: ServerConnection) -> None:
        await line.send(pack(self.declared))
        count = 0
        async for message in line:
            await line.send(await self._reply(message, count))
            count += 1

    async def _as_vla_eval(self, line: ServerConnection) -> None:
        spec = self.declared.get("action_spec")
        session = vla_eval.Session(self.answer, spec and ActionSpec(**spec), self.horizon)
        async for message in line:
            if reply := await session.reply(message):
                await line.send(reply)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """A client asks once at a time, so no batch waits for more than are connected."""
        self.clients += 1
        try:
            yield
        finally:
            self.clients -= 1

    async def _reply(self, message: str | bytes, count: int) -> str | bytes:
        """The packed answer to a client's message number `count`, or a text about its fault."""
        began = time.perf_counter()
        try:
            chunk = await self.answer(observation_of(message, count))
        except ValueError as error:
            return f"{type(error).__name__}: {error}"
        took = 1000 * (time.perf_counter() - began)
        return pack({"actions": chunk, "server_timing": {"infer_ms": took}})

    async def answer(self, seen: Observation) -> np.ndarray:
        """The chunk float32 [k, 7] for what a client saw; ValueError says why there is none."""
        try:
            frame = self.resize(frame_of(seen.image)[None])[0]
            views = {name: frame_of(view) for name, view in seen.views.items()}
            asked = Observation(frame, seen.instruction, views, seen.state, seen.seed)
            chunk = await asyncio.wrap_future(self.batcher.ask(self.checkpoint, asked))
            return checked(chunk, len(chunk), "the policy")
        except ValueError:
            raise
        except Exception as error:
            log.exception("the policy failed")
            raise ValueError(f"the policy failed: {type(error).__name__}: {error}") from error


class Listening:
    """A policy server that is bound to `socket`."""

    def __init__(self, server: PolicyServer, bound: socket.socket) -> None:
        self.server, self.socket = server, bound
        self._serving = threading.Event()

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def serve_forever(self) -> None:
        """Answer clients in this thread, until `shutdown`."""
        asyncio.run(self._serve())

    def shutdown(self) -> None:
        """End a `serve_forever` that another thread has begun or is about to begin."""
        self._serving.wait()
        self._loop.call_soon_threadsafe(self._ended.set)

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        # Browsers name an origin: a page on this machine must not steer a robot.
        options: dict[str, Any] = {"origins": [None], "compression": None, "max_size": LARGEST}
        admit, client = self.server.admit, self.server.client
        async with serve(client, sock=self.socket, process_request=admit, **options):
            self._serving.set()
            await self._ended.wait()


def check_address(host: str, token: str | None) -> None:
    """ValueError for an address that other machines reach, unless there is a token."""
    if token is None and not is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines, so clients must show a token: set "
            f"{TOKEN}, or listen on {LOOPBACK}"
        )


def observation_of(message: str | bytes, count: int) -> Observation:
    """An observation from a client's message; BadRequestError says what is wrong with it.

    `seed` in it is what a stochastic policy draws from, otherwise the message's number.
    """
    if isinstance(message, str):
        raise BadRequestError("send msgpack in a binary message, not text")
    try:
        sent = unpack(message)
    except ValueError as error:
        raise BadRequestError(f"the message is {error}") from None
    if not isinstance(sent, dict):
        raise BadRequestError(f"send a dict of an image and a prompt, not a {type(sent).__name__}")
    prompt, seed = sent.get("prompt"), sent.get("seed", count)
    if not isinstance(prompt, str):
        raise BadRequestError(f"'prompt' must be a text, not a {type(prompt).__name__}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise BadRequestError(f"'seed' must be a whole number from 0, not {seed!r}")
    views = {WRIST: sent[WRIST_KEY]} if WRIST_KEY in sent else {}
    return Observation(_image(sent), prompt, views, sent.get(STATE_KEY), seed)


def _image(sent: Mapping[Any, Any]) -> Any:
    image = next((sent[key] for key in IMAGE_KEYS if key in sent), None)
    if not isinstance(image, np.ndarray):
        known = ", ".join(repr(key) for key in sorted(map(str, sent)))
        raise BadRequestError(
            f"no array under {IMAGE_KEYS[0]!r} or {IMAGE_KEYS[1]!r}; the message has {known}"
        )
    return image


def is_token(shown: str, token: str) -> bool:
    """Whether an Authorization header holds the token; takes as long for any wrong one."""
    scheme = next((scheme for scheme in SCHEMES if shown.startswith(scheme)), "")
    return hmac.compare_digest(shown.removeprefix(scheme).encode(), token.encode())


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
