"""The vla-eval harness's protocol, both ways: its benchmarks ask our policies, we ask its servers.

Messages are msgpack dicts of type, payload, seq and timestamp (harness 0.8, protocol 1). A
client says hello, starts an episode, and is answered with one action per observation.
"""

from __future__ import annotations

import io
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection

from envs.api import ActionSpec, Observation

PATH = "/vla-eval"
"""Where our server speaks this protocol: ws://HOST:PORT/vla-eval."""
CAMERA, WRIST, STATE, TASK = "agentview", "wrist", "states", "task_description"
SILENT = ("episode_start", "episode_end")
"""Messages that no answer is sent to."""
HELLO = {"harness_version": "0.8.0", "protocol_version": 1}
LARGEST_SIDE = 4096
"""Pixels; a larger compressed frame is refused before it is decoded."""
FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "position": {"delta_xyz": {}, "raw": {}},
    "rotation": {"axis_angle": {"rotation": "axis_angle"}, "euler_xyz": {"rotation": "euler"}},
    "gripper": {
        "binary_close_positive": {"gripper_close": 1},
        "binary_close_negative": {"gripper_close": -1},
        "raw": {},
    },
}
"""What the harness says of a part of an action -> the same in an ActionSpec; raw says nothing."""

MALFORMED = (
    *(ValueError, TypeError, LookupError, OSError, RecursionError, ArithmeticError),
    *(SyntaxError, struct.error, msgpack.UnpackException, Image.DecompressionBombError),
)
"""What msgpack, numpy (its dtypes are parsed as Python) and Pillow raise for foreign bytes."""

Answer = Callable[[Observation], Awaitable[np.ndarray]]
"""The chunk float32 [k, 7] for an observation; ValueError says what is wrong with it."""


class BadRequestError(ValueError):
    """A message that cannot be answered; its text is sent to the client."""


def pack(kind: str, payload: Mapping[str, Any], seq: int) -> bytes:
    message = {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}
    return bytes(msgpack.packb(message, default=_pack_numpy))


def unpack(data: str | bytes) -> tuple[str, dict[str, Any], int]:
    """Type, payload and number of a message; ValueError for anything else. Never unpickles."""
    if isinstance(data, str):
        raise ValueError("send msgpack in a binary message, not text")
    try:
        message = msgpack.unpackb(data, object_hook=_unpack_numpy)
        kind, payload, seq = message["type"], message["payload"], message["seq"]
    except MALFORMED as error:
        raise ValueError(f"not a message of vla-eval: {type(error).__name__}: {error}") from None
    if not (isinstance(kind, str) and isinstance(payload, dict) and isinstance(seq, int)):
        raise ValueError("not a message of vla-eval: a type, a payload or a number is missing")
    return kind, payload, seq


def _pack_numpy(value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"a {type(value).__name__} cannot be sent")
    layout = {"dtype": array.dtype.str, "shape": array.shape}
    return {"__ndarray__": True, "data": array.tobytes(), **layout}


def _unpack_numpy(value: dict[str, Any]) -> Any:
    if "__image__" in value and value["format"] != "raw":
        return _picture(value["data"])
    if "__image__" not in value and "__ndarray__" not in value:
        return value
    return array_of(value["dtype"], value["data"], value["shape"])


def _picture(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        if max(image.size) > LARGEST_SIDE:
            raise ValueError(f"a frame has {image.size} pixels")
        return np.asarray(image)


def array_of(dtype: Any, data: Any, shape: Any) -> np.ndarray:
    """An array as it was sent; ValueError unless the three say one thing.

    numpy alone would take no dtype for float64, -1 for whatever is left and None for flat.
    """
    kind = number(dtype)
    whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or not isinstance(data, bytes):
        raise ValueError(f"an array of shape {shape!r:.99} in a {type(data).__name__}")
    return np.frombuffer(data, kind).reshape(shape)


def number(dtype: Any) -> np.dtype:
    """The dtype of that name; ValueError when it is no number's."""
    found = np.dtype(dtype) if isinstance(dtype, str) else None
    if found is None or found.kind not in "biuf":
        raise ValueError(f"an array has dtype {dtype!r:.99}")
    return found


class Session:
    """One client of our server. horizon: actions executed of a chunk before the next look."""

    def __init__(self, answer: Answer, spec: ActionSpec | None, horizon: int | None) -> None:
        self.answer, self.spec, self.horizon = answer, spec, horizon
        self.left: deque[np.ndarray] = deque()
        self.looks = 0

    async def reply(self, data: str | bytes) -> bytes | None:
        """The message that answers a client's, if it wants one."""
        seq = 0
        try:
            kind, payload, seq = unpack(data)
            if kind == "hello":
                specs = {"action_spec": dimensions(self.spec)} if self.spec else {}
                return pack("hello", {**HELLO, "model_server": "vla_platform", **specs}, seq)
            if kind == "observation":
                return pack("action", {"actions": await self._next(payload)}, seq)
            if kind not in SILENT:
                raise ValueError(f"a message of type {kind!r:.99} is none that a client sends")
        except ValueError as error:
            return pack("error", {"error": str(error)}, seq)
        self.left.clear()  # an episode begins or ends
        return None

    async def _next(self, payload: dict[str, Any]) -> np.ndarray:
        seen = observation_of(payload, self.looks)  # also where its answer is there already
        if not self.left:
            self.looks += 1
            self.left.extend((await self.answer(seen))[: self.horizon])
        return self.left.popleft()


def observation_of(payload: Mapping[str, Any], seed: int) -> Observation:
    """The first camera is the main one, a second the wrist's; ValueError for other payloads."""
    cameras, task = payload.get("images"), payload.get(TASK)
    if not isinstance(cameras, dict) or not cameras or not isinstance(task, str):
        raise ValueError(f"an observation needs 'images' by camera and a text {TASK!r}")
    first, *others = cameras.values()
    views = dict(zip([WRIST], others, strict=False))
    for frame in (first, *views.values()):
        frame_of(frame)
    return Observation(first, task, views, payload.get(STATE), seed)


def frame_of(image: Any) -> np.ndarray:
    """The frame uint8 [H, W, 3], or BadRequestError."""
    if not isinstance(image, np.ndarray):
        raise BadRequestError(f"a frame must be an array, not a {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise BadRequestError(
            f"the image must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}"
        )
    if not 0 < min(image.shape[:2]) <= max(image.shape[:2]) <= LARGEST_SIDE:
        raise BadRequestError(
            f"the image's sides must be 1 to {LARGEST_SIDE} pixels, not {list(image.shape[:2])}"
        )
    return image.copy()  # what was unpacked cannot be written to, which torch dislikes


def dimensions(spec: ActionSpec) -> dict[str, dict[str, Any]]:
    """What our actions mean, in the harness's words, which know no scales."""
    told = {}
    for (name, forms), dims in zip(FORMS.items(), (3, 3, 1), strict=True):
        form = next(f for f, fields in forms.items() if fields.items() <= vars(spec).items())
        told[name] = {"name": name, "dims": dims, "format": form}
    return told


def meant(declared: Mapping[str, Any], base: ActionSpec) -> ActionSpec:
    """`base`, the benchmark's, with the rotation and sign that a server declares.

    ValueError for absolute positions, and for other forms that no benchmark here takes.
    """
    if not isinstance(declared, Mapping):
        raise ValueError(f"the server declares {declared!r:.99} of its actions, not their parts")
    for name, each in declared.items():
        form = each.get("format") if isinstance(each, Mapping) else each
        if not isinstance(form, str) or form not in FORMS.get(name, {}):
            raise ValueError(f"the server's {name} is {form!s:.99}, which nothing here takes")
        base = replace(base, **FORMS[name][form])
    return base


def greet(line: ClientConnection, timeout: float) -> dict[str, Any]:
    """What a server declares; `action_dims` are its actions' forms."""
    line.send(pack("hello", HELLO, 0))
    kind, payload, _ = unpack(line.recv(timeout))
    if kind != "hello":
        raise ValueError(f"of type {kind}, not hello")
    return {"action_dims" if k == "action_spec" else k: v for k, v in payload.items()}


def ask(line: ClientConnection, sent: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Actions [k, 7]. Each question is an episode, so its answer depends on nothing before it."""
    cameras = {name: sent[name] for name in (CAMERA, WRIST) if name in sent}
    line.send(pack("episode_start", {"task": {"name": sent[TASK]}}, 1))
    rest = {name: value for name, value in sent.items() if name not in cameras}
    line.send(pack("observation", {"images": cameras, **rest}, 2))
    kind, payload, _ = unpack(line.recv(timeout))
    if kind != "action":
        raise ValueError(f"the server says {str(payload.get('error', kind))[:500]}")
    if "actions" not in payload:
        raise ValueError("the server's action is without a field 'actions'")
    return {**payload, "actions": np.atleast_2d(payload["actions"])}
