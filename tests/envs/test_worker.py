"""The wire format and the worker's answers to what it should never be sent."""

import ast
import dataclasses
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs import wire
from envs.api import Demonstration, Observation, StepResult, as_json
from envs.benchmarks import BENCHMARKS
from envs.child import ROOT
from envs.wire import Message
from envs.worker import Session, benchmark_of, load_adapter
from tests.envs.fake_simulator import ROW

PARENT_FILES = {"child", "process", "benchmarks", "preflight", "__main__"}
CHILD_FILES = [p for p in sorted(Path(ROOT, "envs").rglob("*.py")) if p.stem not in PARENT_FILES]


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def through(pair, message):
    wire.send(pair[0], message)
    return wire.receive(pair[1])


def raw(header: bytes, body: bytes = b"", magic: bytes = wire.MAGIC) -> bytes:
    return struct.pack("!4sIQ", magic, len(header), len(body)) + header + body


def test_a_message_survives_the_wire(pair):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "none": np.zeros((0, 3), np.uint8),
        "one": np.array(1.5),
        "big-endian": np.arange(3, dtype=">f4"),
    }
    got = through(pair, Message("kind", {"n": np.int64(3), "yes": np.bool_(True)}, arrays))
    assert (got.kind, got.data) == ("kind", {"n": 3, "yes": True})
    assert all(np.array_equal(got.arrays[name], array) for name, array in arrays.items())


def test_observations_results_and_demonstrations_survive(pair):
    image = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    observation = Observation(image, "pick", {"wrist": image[::-1]}, np.ones(3))
    seen = wire.observation_of(through(pair, wire.observation_message(observation)))
    assert np.array_equal(seen.views["wrist"], image[::-1])
    assert np.array_equal(seen.state, np.ones(3))
    result = StepResult(observation, True, False, True, False, 3, (image, image + 1))
    got = wire.step_of(through(pair, wire.step_message(result)))
    assert (got.done, got.success, got.success_any, got.success_last, got.steps) == (
        (True, False, True, False, 3)
    )
    assert np.array_equal(got.frames[1], image + 1)
    demonstration = Demonstration("go", image[None], np.ones((1, 7), np.float32), True, 1)
    got = wire.demonstration_of(through(pair, wire.demonstration_message(demonstration)))
    assert got.success
    assert np.array_equal(got.images, image[None])


@pytest.mark.parametrize(
    ("data", "says", "fatal"),
    [
        (raw(b"not json"), "not [kind, data, arrays]", False),
        (raw(b'["reset", {}]'), "not [kind, data, arrays]", False),
        (raw(b"\xff\xfe[]"), "not [kind, data, arrays]", False),
        (raw(b'["reset", 3, []]'), "an object of data", False),
        (raw(b'["x", {}, [["a", "object", [1]]]]', b"12345678"), "dtype 'object'", False),
        (raw(b'["x", {}, [["a", "uint8", [-1]]]]'), "impossible shape", False),
        (raw(b'["x", {}, [["a", "uint8", [9]]]]', b"12"), "need 9 bytes, its body has 2", False),
        (raw(b"[" * 100_000), "not [kind, data, arrays]", False),
        # numpy makes no such array, although it would be empty.
        (raw(b'["x", {}, [["a", "uint8", [0, 1073741824, 1073741824, 1073741824]]]]'), "shape", 0),
        (raw(b'["x", {}, [["a", "uint8", [1]], ["a", "uint8", [1]]]]', b"12"), "of one name", 0),
        (raw(b'["x", {}, [["a", "bool", [2]]]]', b"\x01\x02"), "neither true nor false", False),
        (raw(b'["x", {}, [[7, "uint8", [1]]]]', b"1"), "not [kind, data, arrays]", False),
        (raw(b'["x", {}, [["a", "uint8", ""]]]', b"1"), "not [kind, data, arrays]", False),
        (raw(b"{}", magic=b"HTTP"), "starts with b'HTTP'", True),
        (struct.pack("!4sIQ", wire.MAGIC, 1 << 30, 0), "too many bytes", True),
        (struct.pack("!4sIQ", wire.MAGIC, 2, 1 << 62), "too many bytes", True),
    ],
)
def test_malformed_messages_are_refused_by_name(pair, data, says, fatal):
    pair[0].sendall(data)
    with pytest.raises(wire.WireError) as caught:
        wire.receive(pair[1])
    assert says in str(caught.value)
    assert caught.value.fatal is bool(fatal)
    if not fatal:
        assert through(pair, Message("next")).kind == "next"


def test_a_message_cut_short_is_a_closed_connection(pair):
    pair[0].sendall(raw(b'["x", {}, []]')[:-3])
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(wire.ConnectionClosed):
        wire.receive(pair[1])


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Message("rest"), "Did you mean 'reset'?"),
        (Message("reset", {"task": "count"}), "lacks the field 'initial_state'"),
        (Message("reset", {"task": "count", "initial_state": [1]}), "is [1], not a int"),
        (Message("reset", {"task": "count", "initial_state": "0x1"}), "not a int"),
        (
            Message("execute", {}, {"actions": np.ones((2, 9), np.float32)}),
            "not float32 ['any', 7]",
        ),
        (Message("execute", {}, {"actions": np.full((2, 7), np.nan, np.float32)}), "finite"),
        (Message("open", {"benchmark": as_json(ROW)}), "came twice"),
        (Message("execute"), "lacks the array 'actions'"),
        (Message("demonstrate", {}), "has no scripted expert"),
    ],
)
def test_wrong_requests_get_an_error_reply(message, says):
    session = Session(ROW.simulator)
    assert "before 'open'" in session.answer(Message("reset")).data["error"]
    assert session.answer(Message("open", {"benchmark": as_json(ROW)})).kind == "ready"
    reply = session.answer(message)
    assert reply.kind == "error"
    assert says in reply.data["error"]


def test_the_worker_answers_malformed_bytes_and_then_goes_on():
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "envs.worker", "--simulator", ROW.simulator]
    command += ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
    child = subprocess.Popen(command, cwd=ROOT, pass_fds=(theirs.fileno(),))
    theirs.close()
    with ours, child:
        ours.sendall(raw(b"{"))
        assert "malformed" in wire.receive(ours).data["error"]
        wire.send(ours, Message("open", {"benchmark": as_json(ROW)}))
        assert wire.receive(ours).kind == "ready"
        ours.sendall(raw(b"{}", magic=b"oops"))
        assert "malformed" in wire.receive(ours).data["error"]
        assert child.wait(10) == 0


def test_a_row_survives_json():
    assert benchmark_of(json.loads(json.dumps(as_json(ROW)))) == ROW


def test_an_unknown_simulator_names_the_closest():
    with pytest.raises(ValueError, match="Did you mean 'libero'"):
        load_adapter("liber", ROW)


@pytest.mark.parametrize("path", CHILD_FILES, ids=lambda path: path.stem)
def test_child_files_parse_on_python_3_8(path):
    ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step_limits": {"raech": 9}}, "tabletop has no step limit for"),
        ({"horizons": (8, 4)}, r"horizons \(8, 4\) are not in 1..4"),
        ({"horizons": ()}, "horizons"),
        ({"recipe": ("checkpoints", (20, 6000))}, r"checkpoints \(20, 6000\) do not ascend in 1.."),
        ({"recipe": ("checkpoints", (2000, 1000))}, "do not ascend"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(changes, said):
    row = BENCHMARKS["tabletop"]
    if "recipe" in changes:
        field, value = changes["recipe"]
        changes = {"recipe": dataclasses.replace(row.recipe, **{field: value})}
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(row, **changes)


def test_a_horizon_is_within_what_the_policy_predicts():
    row = BENCHMARKS["calvin"]
    assert (row.choose_horizon(None), row.choose_horizon(None, chunk=3)) == (5, 3)
    assert row.choose_horizon(16, chunk=16) == 16
    for horizon, chunk in ((11, None), (4, 3), (0, None)):
        with pytest.raises(ValueError, match=f"1 to {chunk or 10}, not {horizon}"):
            row.choose_horizon(horizon, chunk)
