"""vla-eval's protocol: our server to its benchmarks, and its model servers to our pool."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vla_platform import places, vla_eval
from vla_platform.batcher import BadActionsError
from vla_platform.candidates import Served, candidates
from vla_platform.courier import Courier
from vla_platform.remote import PolicyRefusedError, PolicyUnavailableError
from vla_platform.store import open_store
from vla_platform.vla_eval import meant, pack, unpack
from websockets.sync.client import connect

from envs import tabletop
from envs.api import ActionSpec, Observation
from tests.vla_platform.test_serving import ROW, frame, serving_at, untrained

CHILD = Path(__file__).with_name("vla_eval_child.py")
PEER = Path(os.environ.get("VLA_PEER_PYTHON") or places.home() / "peers/vla-eval/bin/python")
needs_peer = pytest.mark.skipif(not PEER.exists(), reason=f"no vla-eval at {PEER}: make bench-peer")
TASK = "reach the red block"
SEEN = tabletop.Tabletop(ROW).reset("reach", 0)


@pytest.fixture(scope="module")
def policy():
    return untrained()


@pytest.fixture(scope="module")
def url(policy):
    with serving_at(policy, batch=4, horizon=2) as address:
        yield address + vla_eval.PATH


@contextlib.contextmanager
def client(url):
    with connect(url, compression=None) as line:
        line.send(pack("hello", {}, 7))
        kind, said, seq = unpack(line.recv())
        assert (kind, seq, said["protocol_version"]) == ("hello", 7, 1)
        assert said["action_spec"]["rotation"]["format"] == "euler_xyz"
        yield line


def ask(line, image, seq=1):
    line.send(pack("observation", {"images": {"agentview": image}, "task_description": TASK}, seq))
    kind, payload, answered = unpack(line.recv())
    assert answered == seq
    return payload["actions"] if kind == "action" else payload["error"]


def test_a_benchmark_gets_one_action_per_observation_and_a_look_per_horizon(policy, url):
    first, other = (policy.act([Observation(frame(n), TASK)])[0] for n in (1, 2))
    with client(url) as line:
        found = [ask(line, frame(n)) for n in (1, 2, 2)]
        np.testing.assert_allclose(found, [first[0], first[1], other[0]], atol=1e-5)
        line.send(pack("episode_start", {}, 2))  # forgets what was left of the chunk
        np.testing.assert_allclose(ask(line, frame(1)), first[0], atol=1e-5)


def test_compressed_frames_are_read(policy, url):
    packed = io.BytesIO()
    Image.fromarray(frame(3)).save(packed, "PNG")
    sent = {"__image__": True, "format": "png", "data": packed.getvalue(), "shape": [224, 224, 3]}
    expected = policy.act([Observation(frame(3), TASK)])[0, 0]
    with client(url) as line:
        np.testing.assert_allclose(ask(line, sent), expected, atol=1e-5)


def bomb():
    """A PNG that says it has ten billion pixels."""
    packed = io.BytesIO()
    Image.fromarray(frame(0, 8)).save(packed, "PNG")
    data = bytearray(packed.getvalue())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return {"format": "png", "data": bytes(data)}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"\xc1", "not a message"),
        ("text", "binary message"),
        (pack("observation", {"images": {}}, 1), "needs 'images'"),
        (pack("observation", {"images": {"a": [1]}, "task_description": TASK}, 1), "not a list"),
        (
            pack("observation", {"images": {"a": np.zeros((4, 4))}, "task_description": TASK}, 1),
            "not float64",
        ),
        (
            pack("observation", {"images": {"a": {"__image__": 1, **bomb()}}}, 1),
            "DecompressionBomb",
        ),
        (pack("observatoin", {}, 1), "none that a client sends"),
    ],
    # Messages carry the time, and every worker of a run must call a test the same.
    ids=["bytes", "text", "no frames", "a list", "floats", "bomb", "strange type"],
)
def test_a_fault_is_told_to_its_client_alone(url, message, said):
    with client(url) as faulty, client(url) as other:
        faulty.send(message)
        kind, payload, _ = unpack(faulty.recv())
        assert kind == "error" and said in payload["error"]
        assert ask(other, frame(1)).shape == ask(faulty, frame(1)).shape == (7,)


def test_a_bad_observation_is_told_where_its_answer_was_known_already(url):
    with client(url) as line:
        assert ask(line, frame(1)).shape == (7,)
        assert "not a NoneType" in ask(line, None)  # the second of the chunk's actions is left
        assert ask(line, frame(1)).shape == (7,)


def test_what_a_server_declares_is_compared_with_the_benchmark():
    base = ActionSpec(1.0, "euler", 1.0, 1)
    declared = vla_eval.dimensions(ActionSpec(0.05, "axis_angle", 0.5, -1))
    assert meant(declared, base) == ActionSpec(1.0, "axis_angle", 1.0, -1)
    with pytest.raises(ValueError, match="position is absolute_xyz"):
        meant({"position": {"format": "absolute_xyz"}}, base)
    for strange in ([], {"position": None}, {"position": {"format": []}}):
        with pytest.raises(ValueError, match="the server"):
            meant(strange, base)


def met(url, tmp_path):
    served = Served("e", "vla-eval", "tabletop")
    [found] = candidates(url, ["tabletop"], open_store(str(tmp_path)), served)
    return found.policy


def test_our_client_and_our_server_agree(policy, url, tmp_path):
    expected = policy.act([SEEN])[0, :1]
    answers = [Courier(None, 1, 60.0).act(met(url, tmp_path), SEEN, 1, 20.0) for _ in range(2)]
    np.testing.assert_allclose(answers, [expected] * 2, atol=1e-5)


def test_an_openpi_server_is_not_mistaken_for_one(url, tmp_path):
    with pytest.raises(PolicyRefusedError, match="not a policy server of vla-eval's"):
        met(url.removesuffix(vla_eval.PATH), tmp_path)


@needs_peer
@pytest.mark.full
def test_the_harness_client_gets_our_actions(policy, url, tmp_path):
    out = tmp_path / "actions.npy"
    subprocess.run([PEER, CHILD, "ask", url, out], check=True, timeout=120)
    chunk = policy.act([Observation(frame(0), TASK)])[0]
    np.testing.assert_allclose(np.load(out), chunk[[0, 1, 0]], atol=1e-5)


@contextlib.contextmanager
def harness_server(mode):
    with subprocess.Popen([PEER, CHILD, "serve", mode], stdout=subprocess.PIPE, text=True) as child:
        try:
            yield f"ws://127.0.0.1:{int(child.stdout.readline())}"
        finally:
            child.kill()


def patiently(url, tmp_path):
    """The policy once its server listens, which is a little after it has said where."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return met(url, tmp_path)
        except PolicyUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@needs_peer
@pytest.mark.full
def test_the_harness_server_answers_our_pool(tmp_path):
    raw = np.cos(SEEN.image[::32, ::32].astype(np.float64).sum() + np.arange(7))
    raw[6] *= -1  # it declares the other gripper sign
    courier = Courier(None, 1, 60.0)
    with harness_server("whole") as url:
        policy = patiently(url, tmp_path)
        found = courier.act(policy, SEEN, 2, 20.0)
        np.testing.assert_allclose(found, [raw, raw / 2], rtol=1e-5)
    with harness_server("single") as url:
        policy = patiently(url, tmp_path)
        for _ in range(3):  # whatever was asked before
            np.testing.assert_allclose(courier.act(policy, SEEN, 1, 20.0), [raw], rtol=1e-5)
        with pytest.raises(BadActionsError, match=r"shape \[1, 7\]"):
            courier.act(policy, SEEN, 2, 20.0)
