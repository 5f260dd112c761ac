"""The vla-eval harness's protocol, both ways: its benchmarks ask our policies, we ask its servers.

Messages are msgpack dicts of type, payload, seq and timestamp (harness 0.8, protocol 1). A
client says hello, starts an episode, and is answered with one action per observation.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Mapping
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
HELLO = {"harness_version": "0.8.0", "protocol_version": 1}
LARGEST_SIDE = 4096
"""Pixels of a compressed frame; more is refused before it is decoded."""
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

Answer = Callable[[Observation], np.ndarray]
"""The chunk float32 [k, 7] for an observation; ValueError says what is wrong with it."""


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
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
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
        with Image.open(io.BytesIO(value["data"]), formats=("PNG", "JPEG")) as image:
            if max(image.size) > LARGEST_SIDE:
                raise ValueError(f"a frame has {image.size} pixels")
            return np.asarray(image)
    if "__image__" not in value and "__ndarray__" not in value:
        return value
    dtype = np.dtype(value["dtype"])
    if dtype.kind not in "biuf":
        raise ValueError(f"an array has dtype {dtype}")
    return np.frombuffer(value["data"], dtype).reshape(value["shape"])


class Session:
    """One client of our server. horizon: actions executed of a chunk before the next look."""

    def __init__(self, answer: Answer, spec: ActionSpec | None, horizon: int | None) -> None:
        self.answer, self.spec, self.horizon = answer, spec, horizon
        self.left: deque[np.ndarray] = deque()
        self.looks = 0

    def reply(self, data: str | bytes) -> bytes | None:
        """The message that answers a client's, if it wants one."""
        seq = 0
        try:
            kind, payload, seq = unpack(data)
            if kind == "hello":
                specs = {"action_spec": dimensions(self.spec)} if self.spec else {}
                return pack("hello", {**HELLO, "model_server": "vla_platform", **specs}, seq)
            if kind == "observation":
                return pack("action", {"actions": self._next(payload)}, seq)
        except ValueError as error:
            return pack("error", {"error": str(error)}, seq)
        self.left.clear()  # an episode begins or ends
        return None

    def _next(self, payload: dict[str, Any]) -> np.ndarray:
        if not self.left:
            seed, self.looks = self.looks, self.looks + 1
            self.left.extend(self.answer(observation_of(payload, seed))[: self.horizon])
        return self.left.popleft()


def observation_of(payload: Mapping[str, Any], seed: int) -> Observation:
    """The first camera is the main one, a second the wrist's; ValueError for other payloads."""
    cameras, task = payload.get("images"), payload.get(TASK)
    if not isinstance(cameras, dict) or not cameras or not isinstance(task, str):
        raise ValueError(f"an observation needs 'images' by camera and a text {TASK!r}")
    first, *others = cameras.values()
    views = dict(zip([WRIST], others, strict=False))
    return Observation(first, task, views, payload.get(STATE), seed)


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
    for name, each in declared.items():
        if each["format"] not in FORMS.get(name, {}):
            raise ValueError(f"the server's {name} is {each['format']}, which nothing here takes")
        base = replace(base, **FORMS[name][each["format"]])
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
    return {**payload, "actions": np.atleast_2d(payload["actions"])}
