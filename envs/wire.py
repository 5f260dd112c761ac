"""The messages between a simulator's child process and its supervisor.

A message is a prefix (magic, header size, body size), a JSON header and the raw bytes of its
arrays in the header's order. Nothing is pickled, every size is checked before memory is taken.
Imported by the child: Python 3.8, standard library and numpy only.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from envs.api import ACTION_DIM, Camera, Demonstration, Observation, Snapshot, StepResult, Thing

MAGIC = b"VLA1"
MAX_HEADER = 1 << 20
MAX_BODY = 1 << 30
DTYPES = ("uint8", "bool", "int32", "int64", "float32", "float64")
VIEW = "view:"
"""Prefix that tells a named extra view from an observation's own arrays."""

_PREFIX = struct.Struct("!4sIQ")
_SKIP_BYTES = 1 << 16


class WireError(Exception):
    """A malformed message. `fatal`: the stream's framing is lost, so it cannot go on."""

    def __init__(self, reason: str, fatal: bool = False) -> None:
        super().__init__(reason)
        self.fatal = fatal


class ConnectionClosed(Exception):  # noqa: N818 an event, named as one
    """The other side closed its end, or died."""


@dataclass(frozen=True)
class Message:
    """A kind, JSON data and named arrays."""

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def value(self, name: str, *kinds: type) -> Any:
        """A field of the data; WireError when it is missing, or of none of the given types."""
        if name not in self.data:
            raise WireError(f"message {self.kind!r} lacks the field {name!r}")
        found = self.data[name]
        if kinds and type(found) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise WireError(f"message {self.kind!r}: {name!r} is {found!r:.99}, not a {wanted}")
        return found

    def array(self, name: str, shape: Tuple[int, ...] = (), dtype: str = "") -> np.ndarray:
        """An array; WireError when it is missing or not as said. In a shape -1 is any extent."""
        if name not in self.arrays:
            raise WireError(f"message {self.kind!r} lacks the array {name!r}")
        found = self.arrays[name]
        fits = len(shape) == found.ndim and all(n in (-1, m) for n, m in zip(shape, found.shape))
        if (shape and not fits) or found.dtype != (dtype or found.dtype):
            wanted = f"{dtype or 'an array'} {['any' if n < 0 else n for n in shape]}"
            said = f"{name!r} is {found.dtype} {list(found.shape)}, not {wanted}"
            raise WireError(f"message {self.kind!r}: {said}")
        return found


def send(sock: socket.socket, message: Message, deadline: Optional[float] = None) -> None:
    """Write one message; `deadline` is a time.monotonic() value.

    Errors: TimeoutError past the deadline, ConnectionClosed when nobody reads any more.
    """
    arrays = {name: _native(array) for name, array in message.arrays.items()}
    layout = [(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    body_size = sum(_array_size(*entry) for entry in layout)
    text = json.dumps([message.kind, message.data, layout], default=_plain).encode()
    if len(text) > MAX_HEADER or body_size > MAX_BODY:
        raise WireError(f"message {message.kind!r} is too large: {len(text)} + {body_size} bytes")
    _write(sock, memoryview(_PREFIX.pack(MAGIC, len(text), body_size) + text), deadline)
    for array in arrays.values():
        _write(sock, _bytes_of(array), deadline)


def receive(sock: socket.socket, deadline: Optional[float] = None) -> Message:
    """Read one message.

    Errors: WireError for a malformed one (its body is skipped unless the error is fatal),
    ConnectionClosed at the stream's end, TimeoutError past the deadline.
    """
    prefix = bytearray(_PREFIX.size)
    _fill(sock, memoryview(prefix), deadline)
    magic, header_size, body_size = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise WireError(f"a message starts with {bytes(magic)!r}, not {MAGIC!r}", fatal=True)
    if header_size > MAX_HEADER or body_size > MAX_BODY:
        sizes = (
            f"header {header_size} (at most {MAX_HEADER}), body {body_size} (at most {MAX_BODY})"
        )
        raise WireError(f"a message declares too many bytes: {sizes}", fatal=True)
    header = bytearray(header_size)
    _fill(sock, memoryview(header), deadline)
    try:
        kind, data, layout = _parse_header(bytes(header), body_size)
    except WireError:
        _skip(sock, body_size, deadline)
        raise
    return Message(kind, data, _read_arrays(sock, layout, deadline))


Layout = List[Tuple[str, str, Tuple[int, ...]]]


def _read_arrays(
    sock: socket.socket, layout: Layout, deadline: Optional[float]
) -> Dict[str, np.ndarray]:
    arrays = {}
    for name, dtype, shape in layout:
        arrays[name] = np.empty(shape, dtype)
        _fill(sock, _bytes_of(arrays[name]), deadline)
    for name, array in arrays.items():
        if array.dtype == np.bool_ and np.any(array.view(np.uint8) > 1):
            raise WireError(f"array {name!r} has bytes that are neither true nor false")
    return arrays


def _parse_header(text: bytes, body_size: int) -> Tuple[str, Dict[str, Any], Layout]:
    try:
        kind, data, raw_layout = json.loads(text.decode("utf-8"))
        layout = [_entry(*entry) for entry in raw_layout]
    except (ValueError, TypeError, RecursionError) as error:
        raise WireError(
            f"a message's header is not [kind, data, arrays] as JSON: {error}"
        ) from None
    if not (isinstance(kind, str) and isinstance(data, dict) and isinstance(raw_layout, list)):
        raise WireError("a message's header needs a string kind and an object of data")
    if len({name for name, _, _ in layout}) < len(layout):
        raise WireError(f"message {kind!r} has two arrays of one name")
    declared = sum(_array_size(*entry) for entry in layout)
    if declared != body_size:
        raise WireError(f"message {kind!r}: arrays need {declared} bytes, its body has {body_size}")
    return kind, data, layout


def _entry(name: str, dtype: str, shape: List[int]) -> Tuple[str, str, Tuple[int, ...]]:
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(shape, list)):
        raise TypeError("an array is [name, dtype, shape]")
    return name, dtype, tuple(shape)


def _array_size(name: str, dtype: str, shape: Tuple[Any, ...]) -> int:
    if dtype not in DTYPES:
        raise WireError(f"array {name!r} has dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    if len(shape) > 8 or not all(type(n) is int and 0 <= n <= MAX_BODY for n in shape):
        raise WireError(f"array {name!r} has an impossible shape {list(shape)!r}")
    # Without its zeros as well: numpy makes no empty array whose other extents are too large.
    size = np.dtype(dtype).itemsize * int(np.prod([max(n, 1) for n in shape], dtype=object))
    if size > MAX_BODY:
        raise WireError(f"array {name!r} has an impossible shape {list(shape)!r}")
    return 0 if 0 in shape else size


def _plain(value: Any) -> Any:
    """numpy scalars, which simulators like to return, as JSON numbers."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a message cannot carry a {type(value).__name__} in its header")


def _native(array: np.ndarray) -> np.ndarray:
    """Contiguous, in this machine's byte order: a dtype's name says nothing of either."""
    whole = np.asarray(array, order="C")
    return whole.astype(whole.dtype.newbyteorder("="), copy=False)


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _write(sock: socket.socket, view: memoryview, deadline: Optional[float]) -> None:
    _arm(sock, deadline)
    try:
        sock.sendall(view)
    except (BrokenPipeError, ConnectionResetError):
        raise ConnectionClosed from None


def _fill(sock: socket.socket, view: memoryview, deadline: Optional[float]) -> None:
    filled = 0
    while filled < len(view):
        _arm(sock, deadline)
        try:
            count = sock.recv_into(view[filled:])
        except ConnectionResetError:
            count = 0
        if count == 0:
            raise ConnectionClosed
        filled += count


def _skip(sock: socket.socket, size: int, deadline: Optional[float]) -> None:
    scratch = memoryview(bytearray(min(size, _SKIP_BYTES)))
    while size > 0:
        part = scratch[: min(size, len(scratch))]
        _fill(sock, part, deadline)
        size -= len(part)


def _arm(sock: socket.socket, deadline: Optional[float]) -> None:
    """Give the socket the time that is left; a passed deadline still gets one quick try."""
    if deadline is not None:
        sock.settimeout(max(deadline - time.monotonic(), 1e-3))


def observation_message(observation: Observation) -> Message:
    arrays = {"image": observation.image}
    if observation.state is not None:
        arrays["state"] = observation.state
    arrays.update({VIEW + name: view for name, view in observation.views.items()})
    return Message("observation", {"instruction": observation.instruction}, arrays)


def observation_of(message: Message) -> Observation:
    """WireError, as of all that read a message, when it is not what its kind promises."""
    arrays = message.arrays
    image = message.array("image", (-1, -1, 3), "uint8")
    views = {name[len(VIEW) :]: array for name, array in arrays.items() if name.startswith(VIEW)}
    return Observation(image, message.value("instruction", str), views, arrays.get("state"))


def step_message(result: StepResult) -> Message:
    observation = observation_message(result.observation)
    arrays = dict(observation.arrays)
    if result.frames:
        arrays["frames"] = np.stack(result.frames)
    outcome = {name: getattr(result, name) for name in _OUTCOME}
    return Message("step", {**observation.data, **outcome}, arrays)


_FLAGS, _COUNTS = ("done", "success", "success_any", "success_last"), ("steps", "completed")
_OUTCOME = (*_FLAGS, *_COUNTS)


def step_of(message: Message) -> StepResult:
    outcome = {name: message.value(name, bool) for name in _FLAGS}
    outcome.update({name: message.value(name, int) for name in _COUNTS})
    if min(outcome[name] for name in _COUNTS) < 0:
        raise WireError("a step cannot have fewer than no steps or subtasks")
    recorded = "frames" in message.arrays
    frames = tuple(message.array("frames", (-1, -1, -1, 3), "uint8")) if recorded else ()
    return StepResult(observation=observation_of(message), frames=frames, **outcome)


def demonstration_message(demonstration: Demonstration) -> Message:
    data = {name: getattr(demonstration, name) for name in ("instruction", "success", "steps")}
    arrays = {"images": demonstration.images, "actions": demonstration.actions}
    return Message("demonstration", data, arrays)


def demonstration_of(message: Message) -> Demonstration:
    images = message.array("images", (-1, -1, -1, 3), "uint8")
    return Demonstration(
        instruction=message.value("instruction", str),
        images=images,
        actions=message.array("actions", (len(images), ACTION_DIM)),
        success=message.value("success", bool),
        steps=message.value("steps", int),
    )


def snapshot_message(snapshot: Snapshot) -> Message:
    things, camera = snapshot.things, snapshot.camera
    data = {
        "names": [thing.name for thing in things],
        "pixels": [thing.pixels for thing in things],
        "focal": camera.focal,
    }
    arrays = {name: getattr(snapshot, name) for name in ("image", "depth", "segments")}
    boxes = np.array([[thing.centre, thing.extent] for thing in things]).reshape(-1, 2, 3)
    return Message("snapshot", data, {**arrays, "boxes": boxes, "pose": camera.pose})


def snapshot_of(message: Message) -> Snapshot:
    names, pixels = message.value("names", list), message.value("pixels", list)
    boxes = message.array("boxes", (len(names), 2, 3))
    if {type(name) for name in names} - {str} or [type(n) for n in pixels] != [int] * len(names):
        raise WireError("message 'snapshot' needs a name and a whole number of pixels of each box")
    depth = message.array("depth", (-1, -1))
    height, width = depth.shape
    focal = message.value("focal", float, int)
    columns = zip(names, boxes, pixels)
    return Snapshot(
        image=message.array("image", (height, width, 3), "uint8"),
        depth=depth,
        segments=message.array("segments", (height, width)),
        camera=Camera(focal, width, height, message.array("pose", (4, 4))),
        things=tuple(Thing(name, box[0], box[1], count) for name, box, count in columns),
    )
