"""Messages, damaged and altered: the simulators' protocol, openpi's and vla-eval's.

What is accepted is judged by rules written here, not by the code under test.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
from vla_platform import adapters, remote, serving, vla_eval

from envs import tabletop, wire
from envs.api import ActionSpec, Demonstration, Observation, Snapshot, StepResult, as_json
from envs.wire import Message
from envs.worker import Session
from tests.fuzz.damage import MSGPACK_STRANGE, Target, altered, damaged, refusal

ROW = tabletop.BENCHMARKS["tabletop"]
FRAME = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
EPISODE = {"task": "reach", "initial_state": 3, "seed": 1, "record": False}
ACTIONS = np.zeros((2, 7), np.float32)
REQUESTS = [
    Message("reset", EPISODE),
    Message("execute", {}, {"actions": ACTIONS}),
    Message("demonstrate", EPISODE),
    Message("fingerprint"),
    Message("open", {"benchmark": as_json(ROW)}),
    Message("snapshot"),
]
_SEEN = Observation(FRAME, "reach", {"wrist": FRAME}, np.ones(9))
_GRID = np.zeros((8, 8), np.float32)
_CAMERA = SimpleNamespace(focal=30.0, pose=np.eye(4))
_THING = SimpleNamespace(name="block", centre=np.ones(3), extent=np.ones(3), pixels=4)
_SHOWN = Snapshot(FRAME, _GRID, _GRID.astype(np.int32), _CAMERA, (_THING, _THING))
REPLIES: list[tuple[Message, Callable[[Message], Any]]] = [
    (wire.observation_message(_SEEN), wire.observation_of),
    (
        wire.step_message(StepResult(_SEEN, True, False, True, False, 3, (FRAME, FRAME))),
        wire.step_of,
    ),
    (
        wire.demonstration_message(Demonstration("go", FRAME[None], ACTIONS[:1], True, 1)),
        wire.demonstration_of,
    ),
    (wire.snapshot_message(_SHOWN), wire.snapshot_of),
]


def header_of(message: Message) -> list[Any]:
    layout = [[name, array.dtype.name, list(array.shape)] for name, array in message.arrays.items()]
    return json.loads(json.dumps([message.kind, dict(message.data), layout]))


def body_of(message: Message) -> bytes:
    return b"".join(array.tobytes() for array in message.arrays.values())


def framed(header: bytes, body: bytes) -> bytes:
    return struct.pack("!4sIQ", wire.MAGIC, len(header), len(body)) + header + body


def request(rng: Random) -> bytes:
    """A request in a sound frame, whatever is in it."""
    message = rng.choice(REQUESTS)
    header, body = header_of(message), body_of(message)
    if rng.random() < 0.6:
        text = json.dumps(altered(rng, header)).encode()
    else:
        text = damaged(rng, json.dumps(header).encode())
    return framed(text, damaged(rng, body) if body and rng.random() < 0.3 else body)


def frame(rng: Random) -> bytes:
    """As `request`, its frame possibly damaged too."""
    return request(rng) if rng.random() < 0.3 else damaged(rng, request(rng))


def received(data: bytes) -> Message:
    """What `wire.receive` makes of bytes after which the other side closes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        return wire.receive(theirs)


def check_frame(data: bytes) -> str:
    try:
        message = received(data)
    except wire.ConnectionClosed:
        return "ConnectionClosed"
    except wire.WireError as error:
        return refusal(error)
    sizes = struct.unpack("!4sIQ", data[:16])
    assert sizes[0] == wire.MAGIC
    kind, given, layout = json.loads(data[16 : 16 + sizes[1]])
    assert (message.kind, [*message.arrays]) == (kind, [name for name, _, _ in layout])
    assert repr(dict(message.data)) == repr(given)
    body = b"".join(array.tobytes() for array in message.arrays.values())
    assert len(body) == sizes[2] and body == data[16 + sizes[1] :][: sizes[2]]
    for array, (_, dtype, shape) in zip(message.arrays.values(), layout, strict=True):
        assert (array.dtype.name, list(array.shape)) == (dtype, shape)
    return "accepted"


def reply(rng: Random) -> tuple[int, Message]:
    """What a child's own bug might send: right in form, wrong within."""
    number = rng.randrange(len(REPLIES))
    message = REPLIES[number][0]
    data, arrays = dict(message.data), dict(message.arrays)
    if rng.random() < 0.6:
        data = altered(rng, data)
    else:
        name = rng.choice([*arrays])
        shapes = [(), (0,), (3,), (8, 8), (8, 8, 3), (1, 8, 8, 3), (7,), (2, 2, 3), (1, 7)]
        dtypes = ("uint8", "bool", "float32", "float64", "int64")
        arrays[name] = np.zeros(rng.choice(shapes), rng.choice(dtypes))
        if rng.random() < 0.3:
            del arrays[name]
    return number, Message(message.kind, data if isinstance(data, dict) else {}, arrays)


def check_reply(found: tuple[int, Message]) -> str:
    number, message = found
    try:
        value = REPLIES[number][1](message)
    except wire.WireError as error:
        return refusal(error)
    said = value.observation if isinstance(value, StepResult) else value
    if not isinstance(value, Snapshot):
        assert type(said.instruction) is str
    image = said.images if isinstance(said, Demonstration) else said.image
    assert image.dtype == np.uint8 and image.shape[-1] == 3
    if isinstance(value, StepResult):
        assert [type(x) for x in (value.done, value.success, value.steps)] == [bool, bool, int]
        assert all(one.dtype == np.uint8 and one.ndim == 3 for one in value.frames)
    if isinstance(value, Snapshot):
        assert value.depth.shape == value.segments.shape == image.shape[:2]
        assert all(type(thing.name) is str and thing.centre.shape == (3,) for thing in value.things)
    return "accepted"


def sound(message: Message) -> bool:
    """Whether the tabletop may do what a request says."""
    data = message.data
    if message.kind == "execute":
        moves = message.arrays.get("actions", np.empty(0))
        return moves.ndim == 2 and moves.shape[1] == 7 and len(moves) > 0
    if message.kind in ("reset", "demonstrate"):
        whole = type(data.get("initial_state")) is int and type(data.get("seed")) is int
        recorded = message.kind == "demonstrate" or type(data.get("record")) is bool
        return data.get("task") in tabletop.TASKS and whole and recorded
    return message.kind == "fingerprint"


def opened() -> Session:
    session = Session("tabletop")
    assert session.answer(REQUESTS[4]).kind == "ready"
    assert session.answer(REQUESTS[0]).kind == "observation"
    return session


_SESSIONS: list[Session] = []


def check_session(data: bytes) -> str:
    """The worker's answer, in this process."""
    if not _SESSIONS:
        _SESSIONS.append(opened())
    try:
        message = received(data)
    except (wire.WireError, wire.ConnectionClosed):
        return "WireError"
    answer = _SESSIONS[0].answer(message)
    if answer.kind == "error":
        assert answer.data["error"].strip()
        return "error"
    assert sound(message), f"{message} was answered with {answer.kind}"
    return "accepted"


OBSERVATION = {"observation/image": FRAME, "observation/wrist_image": FRAME}
OBSERVATION |= {"observation/state": np.ones(8), "prompt": "reach", "seed": np.float64(1.0)}
OBSERVATION["seed"] = 3


def plain(packed: bytes) -> Any:
    """msgpack without numpy: arrays stay the dicts that they travel as."""
    return msgpack.unpackb(packed, strict_map_key=False)


_PLAIN = plain(remote.pack({**OBSERVATION, "x": np.float32(0.5), "y": np.int64(4)}))


def repacked(rng: Random, value: Any) -> bytes:
    """msgpack of an altered value, or damaged msgpack of the value itself."""
    if rng.random() < 0.4:
        return damaged(rng, msgpack.packb(value))
    found = altered(rng, value, MSGPACK_STRANGE)
    try:
        return msgpack.packb(found)
    except (ValueError, OverflowError):  # deeper, or larger, than msgpack itself writes
        return msgpack.packb(value)


def openpi(rng: Random) -> bytes:
    return repacked(rng, _PLAIN)


def is_frame(value: Any, marks: tuple[Any, ...], largest: int = vla_eval.LARGEST_SIDE) -> bool:
    """Whether a plain value is a frame as it travels. marks: its keys in this protocol."""
    mark, kind, shape, data = marks
    if not isinstance(value, dict) or mark not in value:
        return False
    sides, raw = value.get(shape), value.get(data)
    if not isinstance(sides, list) or [type(n) for n in sides] != [int] * 3 or sides[2] != 3:
        return False
    fits = all(0 < n <= largest for n in sides[:2]) and isinstance(raw, bytes)
    named = value.get(kind) in ("|u1", "u1", "uint8", "<u1", ">u1", "=u1", "B", "ubyte", "|B")
    return fits and named and len(raw) == sides[0] * sides[1] * 3


NUMPY_OPENPI = (b"__ndarray__", b"dtype", b"shape", b"data")
NUMPY_VLA = ("__ndarray__", "dtype", "shape", "data")


def asks(data: bytes) -> bool:
    """Whether openpi's protocol allows the message to be answered."""
    sent = plain(data)
    seed = sent.get("seed", 0)
    first = next(sent[key] for key in serving.IMAGE_KEYS if key in sent)
    wrist = serving.WRIST_KEY not in sent or is_frame(sent[serving.WRIST_KEY], NUMPY_OPENPI)
    whole = type(seed) is int and seed >= 0
    return isinstance(sent["prompt"], str) and whole and is_frame(first, NUMPY_OPENPI) and wrist


def check_openpi(data: bytes) -> str:
    try:
        seen = serving.observation_of(data, 0)
        frames = [vla_eval.frame_of(one) for one in (seen.image, *seen.views.values())]
    except vla_eval.BadRequestError as error:
        return refusal(error)
    assert asks(data) and all(one.flags.writeable for one in frames)
    return "accepted"


def answer(rng: Random) -> bytes:
    """What a policy server might send: actions, or what it declares."""
    value = rng.choice(({"actions": np.ones((4, 8))}, {"action_spec": as_json(ROW.action_spec)}))
    return repacked(rng, plain(remote.pack({**value, "more": np.float32(0.5)})))


class Sent:
    """A line on which these bytes come."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def send(self, data: bytes) -> None:
        self.asked = data

    def recv(self, timeout: float) -> bytes:
        return self.data


SPEC = ROW.action_spec
_POLICY = remote.Remote("ws://here", "{}", "e", "observation", SPEC, SPEC)


def check_answer(data: bytes) -> str:
    """Our client's reading of it, and of what a server declares."""
    try:
        declared = remote.declared_by(remote.OpenPi(), Sent(data), 1.0)
        adapters.declared_actions(json.loads(declared), adapters.ADAPTERS["libero"], "")
        actions = remote.OpenPi().ask(Sent(data), {"prompt": "reach"}, 1.0)
        found = remote.actions_in(_POLICY, actions)
    except (ValueError, remote.PolicyRefusedError) as error:
        return refusal(error)
    assert found.dtype == np.float32
    return "accepted"


_PICTURE = {"__ndarray__": True, "data": FRAME.tobytes(), "dtype": "|u1", "shape": [8, 8, 3]}
_LOOK = {"images": {"agentview": _PICTURE, "wrist": _PICTURE}, "task_description": "reach"}


def vla(rng: Random) -> bytes:
    kind = rng.choice(("observation", "observation", "hello", "episode_start", "action"))
    return repacked(rng, {"type": kind, "payload": _LOOK, "seq": 4, "timestamp": 1.5})


def looks(data: bytes) -> bool:
    """Whether vla-eval's protocol allows the observation to be answered."""
    message = plain(data)
    payload = message["payload"]
    cameras = [*payload["images"].values()][:2]
    fits = all(is_frame(one, NUMPY_VLA) for one in cameras) and len(cameras) > 0
    return fits and isinstance(payload["task_description"], str)


async def _still(seen: Observation) -> np.ndarray:
    for view in (seen.image, *seen.views.values()):
        vla_eval.frame_of(view)
    return np.zeros((1, 7), np.float32)


def check_vla(data: bytes) -> str:
    """Our server's reply to a client of that harness."""
    reply = vla_eval.Session(_still, ActionSpec(1.0, "euler", 1.0, 1), None).reply(data)
    try:
        reply.send(None)  # a loop for each of a million inputs would be most of the time
    except StopIteration as done:
        return judged_vla(data, done.value)
    raise AssertionError("a session waited for something")


def judged_vla(data: bytes, sent: bytes | None) -> str:
    if sent is None:
        assert plain(data)["type"] in ("episode_start", "episode_end")
        return "accepted"
    kind, payload, _ = vla_eval.unpack(sent)
    if kind == "error":
        assert payload["error"].strip()
        return "error"
    assert kind == plain(data)["type"] == "hello" or (kind == "action" and looks(data))
    return "accepted"


TARGETS = (
    Target("worker frames", frame, check_frame),
    Target("worker replies", reply, check_reply),
    Target("worker session", request, check_session),
    Target("openpi requests", openpi, check_openpi),
    Target("openpi answers", answer, check_answer),
    Target("vla-eval requests", vla, check_vla),
)
