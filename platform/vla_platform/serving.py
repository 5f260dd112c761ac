"""Policies served by openpi's protocol: a WebSocket server that batches across its clients.

A client is sent what the policy declares, then answered observation by observation. Whatever
a client does wrong is told to it in a text, and its line stays open for a better message.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from envs.api import Observation
from vla_platform.artifacts import Checkpoint
from vla_platform.inference import Batcher, Policy, checked
from vla_platform.remote import LARGEST, pack, unpack

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
TOKEN = "VLA_SERVE_TOKEN"
"""Environment variable, because a command line can be read by every user of a machine."""
IMAGE_KEYS = ("image", "observation/image")
LARGEST_SIDE = 4096
"""Pixels."""
HEALTH = "/healthz"
SCHEMES = ("Api-Key ", "Bearer ")
"""What may stand before the token; openpi-client writes the first."""

Resize = Callable[[np.ndarray], np.ndarray]
"""Frames uint8 [B, H, W, 3] to the size that the policy sees."""


class BadRequestError(ValueError):
    """A message that cannot be answered; its text is sent to the client."""


class PolicyServer:
    """One policy for any number of clients, each in a thread of its own.

    declared: what every client is told first; `policy` in it is the policy's identity.
    token: what clients must show; None admits everyone. batch: observations per batch.
    """

    def __init__(
        self,
        policy: Policy,
        resize: Resize,
        declared: Mapping[str, Any],
        token: str | None = None,
        batch: int = 16,
        threads: int = 1,
    ) -> None:
        self.declared, self.token, self.resize = dict(declared), token, resize
        self.checkpoint = Checkpoint("served", 0, str(declared["policy"]))
        self.batcher = Batcher(lambda _: policy, batch, threads)

    def listen(self, host: str, port: int) -> Server:
        """A bound server (port 0: any free one); `serve_forever` runs it, `shutdown` ends it.

        ValueError for an address that other machines reach, unless there is a token.
        """
        check_address(host, self.token)
        # Browsers name an origin: a page on this machine must not steer a robot.
        options: dict[str, Any] = {"origins": [None], "compression": None, "max_size": LARGEST}
        return serve(self._client, host, port, process_request=self._admit, **options)

    def _admit(self, line: ServerConnection, request: Request) -> Response | None:
        if request.path == HEALTH:
            return line.respond(HTTPStatus.OK, "OK\n")
        shown = request.headers.get("Authorization", "")
        if self.token is None or is_token(shown, self.token):
            return None
        return line.respond(
            HTTPStatus.UNAUTHORIZED, "show the server's token: Authorization: Api-Key TOKEN\n"
        )

    def _client(self, line: ServerConnection) -> None:
        try:
            line.send(pack(self.declared))
            for count, message in enumerate(line):
                line.send(self._reply(message, count))
        except ConnectionClosed as error:
            log.info("a client left: %s", error)

    def _reply(self, message: str | bytes, count: int) -> str | bytes:
        """The packed answer to a client's message number `count`, or a text about its fault."""
        began = time.perf_counter()
        try:
            seen = observation_of(message, count)
            frame = self.resize(seen.image[None])[0]
            asked = Observation(frame, seen.instruction, seed=seen.seed)
            chunk = self.batcher.ask(self.checkpoint, asked).result()
            chunk = checked(chunk, len(chunk), "the policy")
        except ValueError as error:
            return f"{type(error).__name__}: {error}"
        except Exception as error:
            log.exception("the policy failed")
            return f"the policy failed: {type(error).__name__}: {error}"
        took = 1000 * (time.perf_counter() - began)
        return pack({"actions": chunk, "server_timing": {"infer_ms": took}})


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
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the message is {error}") from None
    if not isinstance(sent, dict):
        raise BadRequestError(f"send a dict of an image and a prompt, not a {type(sent).__name__}")
    prompt, seed = sent.get("prompt"), sent.get("seed", count)
    if not isinstance(prompt, str):
        raise BadRequestError(f"'prompt' must be a text, not a {type(prompt).__name__}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise BadRequestError(f"'seed' must be a whole number from 0, not {seed!r}")
    return Observation(_image(sent), prompt, seed=seed)


def _image(sent: Mapping[Any, Any]) -> np.ndarray:
    image = next((sent[key] for key in IMAGE_KEYS if key in sent), None)
    if not isinstance(image, np.ndarray):
        known = ", ".join(repr(key) for key in sorted(map(str, sent)))
        raise BadRequestError(
            f"no array under {IMAGE_KEYS[0]!r} or {IMAGE_KEYS[1]!r}; the message has {known}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise BadRequestError(
            f"the image must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}"
        )
    if not 0 < min(image.shape[:2]) <= max(image.shape[:2]) <= LARGEST_SIDE:
        raise BadRequestError(
            f"the image's sides must be 1 to {LARGEST_SIDE} pixels, not {list(image.shape[:2])}"
        )
    return image.copy()  # what was unpacked cannot be written to, which torch dislikes


def is_token(shown: str, token: str) -> bool:
    """Whether an Authorization header holds the token; takes as long for any wrong one."""
    scheme = next((scheme for scheme in SCHEMES if shown.startswith(scheme)), "")
    return hmac.compare_digest(shown.removeprefix(scheme).encode(), token.encode())


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
