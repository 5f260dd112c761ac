"""A policy server and its clients over real sockets: answers, company, faults, admission."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import msgpack
import numpy as np
import pytest
from vla_platform import serving
from vla_platform.remote import pack, unpack
from vla_platform.serving import PolicyServer
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from envs.api import Observation
from envs.benchmarks import benchmark
from vlm4vla.policies import VlmPolicy, build_policy
from vlm4vla.run import Run

ROW = benchmark("tabletop")
CHILD = Path(__file__).with_name("openpi_child.py")


def untrained(kind: str = "action_query") -> VlmPolicy:
    run = Run("tiny-paligemma-1", "tabletop", policy=kind, init="scratch")
    return build_policy(run, ROW.chunk, action_spec=ROW.action_spec).eval()


@contextlib.contextmanager
def serving_at(policy: VlmPolicy, **options: object):
    declared = {"policy": "some-weights", "action_spec": asdict(ROW.action_spec)}
    server = PolicyServer(policy, policy.resize, declared, **options).listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def policy():
    return untrained()


@pytest.fixture(scope="module")
def url(policy):
    with serving_at(policy, batch=4) as address:
        yield address


@contextlib.contextmanager
def client(url, **options):
    """A line after its metadata, as openpi-client opens it."""
    with connect(url, compression=None, max_size=None, **options) as line:
        assert unpack(line.recv())["policy"] == "some-weights"
        yield line


def frame(seed, side=224):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def ask(line, number, **more):
    line.send(pack({"image": frame(number), "prompt": "reach the red block", **more}))
    return line.recv()


def test_a_client_gets_the_policys_own_actions(policy, url):
    expected = policy.act([Observation(frame(3), "reach the red block")])[0]
    with client(url) as line:
        answer = unpack(ask(line, 3))
        assert answer["actions"].dtype == np.float32
        assert answer["actions"].shape == (4, 7)
        np.testing.assert_allclose(answer["actions"], expected, atol=1e-5)
        assert answer["server_timing"]["infer_ms"] > 0
        line.send(pack({"observation/image": frame(3), "prompt": "reach the red block"}))
        np.testing.assert_array_equal(unpack(line.recv())["actions"], answer["actions"])


def test_actions_do_not_depend_on_the_other_clients(url):
    with client(url) as line:
        alone = [unpack(ask(line, seed))["actions"] for seed in range(8)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as threads:
        lines = [stack.enter_context(client(url)) for _ in range(8)]
        answers = list(threads.map(ask, lines, range(8)))
    for answer, expected in zip(answers, alone, strict=True):
        np.testing.assert_array_equal(unpack(answer)["actions"], expected)


GOOD = {"image": np.zeros((8, 8, 3), np.uint8), "prompt": "reach"}


def sent_as(**other):
    """A frame as it travels, but for some of its fields."""
    layout = {"__ndarray__": True, "data": bytes(192), "dtype": "|u1", "shape": [8, 8, 3]}
    image = {name.encode(): value for name, value in {**layout, **other}.items()}
    return msgpack.packb({"image": image, "prompt": "reach"})


FAULTS = [
    (b"\xc1\x00", "not msgpack"),
    (b"\x91" * 5000, "not msgpack"),
    ("reach the red block", "binary message"),
    (pack([1, 2]), "not a list"),
    (pack({"prompt": "reach"}), "no array under 'image'"),
    (pack({**GOOD, "image": b"raw"}), "no array under 'image'"),
    (pack({**GOOD, "image": np.zeros((8, 8), np.uint8)}), r"not uint8 [8, 8]"),
    (pack({**GOOD, "image": np.zeros((3, 8, 8), np.uint8)}), r"not uint8 [3, 8, 8]"),
    (pack({**GOOD, "image": np.zeros((8, 8, 3), np.float32)}), "not float32"),
    (pack({**GOOD, "image": np.zeros((0, 8, 3), np.uint8)}), "1 to 4096"),
    (pack({**GOOD, "prompt": 7}), "'prompt' must be a text, not a int"),
    (pack({"image": GOOD["image"]}), "'prompt' must be a text, not a NoneType"),
    (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}), "300"),
    (sent_as(dtype="f4,"), "'f4,'"),
    (sent_as(dtype=","), "invalid syntax"),
    (sent_as(dtype=None), "dtype None"),
    (sent_as(shape=None), "shape None"),
    (sent_as(shape=[8, 8, -1]), "shape [8, 8, -1]"),
    (pack({**GOOD, "seed": -1}), "'seed' must be a whole number from 0, not -1"),
    (pack({**GOOD, "prompt": "reach " * 600}), "shorten the instruction"),
]


@pytest.mark.parametrize(("message", "said"), FAULTS, ids=[said for _, said in FAULTS])
def test_a_fault_is_told_to_its_client_alone(url, message, said):
    with client(url) as faulty, client(url) as other:
        other.send(pack({"image": frame(1), "prompt": "reach the red block"}))
        faulty.send(message)
        told = faulty.recv()
        assert isinstance(told, str)
        assert said in told
        assert "\n" not in told.strip()
        assert unpack(other.recv())["actions"].shape == (4, 7)
        # The line that was at fault goes on as well.
        assert unpack(ask(faulty, 2))["actions"].shape == (4, 7)


def test_dropped_connections_disturb_nobody(url):
    with client(url) as other:
        before = unpack(ask(other, 5))["actions"]
        for _ in range(6):
            with client(url) as line:
                line.send(pack({"image": frame(6), "prompt": "reach the red block"}))
                line.socket.close()  # without a word, while the answer is being computed
        for _ in range(3):
            np.testing.assert_array_equal(unpack(ask(other, 5))["actions"], before)


def test_a_message_that_is_too_large_ends_its_line_alone(url, monkeypatch):
    with client(url) as line, client(url) as other:
        line.send(b"\x00" * (serving.LARGEST + 1))
        with pytest.raises(Exception, match="too big"):
            line.recv()
        assert unpack(ask(other, 1))["actions"].shape == (4, 7)


def test_a_stochastic_policy_draws_from_the_seed_or_the_messages_number():
    with serving_at(untrained("pi0")) as url, client(url) as line, client(url) as other:
        first, second = (unpack(ask(line, 1))["actions"] for _ in range(2))
        assert np.abs(first - second).max() > 1e-3
        np.testing.assert_array_equal(unpack(ask(other, 1))["actions"], first)
        np.testing.assert_array_equal(unpack(ask(other, 1, seed=0))["actions"], first)


def test_a_token_is_asked_of_every_client():
    with serving_at(untrained(), token="secret") as url:
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "Basic secret"}):
            with pytest.raises(InvalidStatus, match="401"):
                connect(url, additional_headers=headers)
        for scheme in ("Api-Key", "Bearer"):
            headers = {"Authorization": f"{scheme} secret"}
            with client(url, additional_headers=headers) as line:
                assert unpack(ask(line, 0))["actions"].shape == (4, 7)


def test_an_answer_does_not_wait_for_the_last_ones_acknowledgement(policy, monkeypatch):
    found, admit = [], PolicyServer.admit

    def noting(server, line, request):
        taken = line.transport.get_extra_info("socket")
        found.append(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        return admit(server, line, request)

    monkeypatch.setattr(PolicyServer, "admit", noting)
    with serving_at(policy) as url, client(url):
        assert found == [1]


def test_web_pages_are_refused(url):
    with pytest.raises(InvalidStatus, match="403"):
        connect(url, origin="http://somewhere.example")


def test_health(url):
    with urllib.request.urlopen(url.replace("ws", "http") + "/healthz") as answer:
        assert answer.read() == b"OK\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "robot.example"])
def test_other_machines_are_only_served_with_a_token(policy, host):
    server = PolicyServer(policy, policy.resize, {"policy": "x"})
    with pytest.raises(ValueError, match="VLA_SERVE_TOKEN"):
        server.listen(host, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback(host):
    assert serving.is_loopback(host)


@pytest.mark.full
def test_openpi_client_gets_actions_in_its_own_environment(policy, url, tmp_path):
    """The published client, which wants numpy 1, in an interpreter of its own."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    # It imports typing_extensions without asking for it.
    install = [python, "-m", "pip", "install", "-q", "openpi-client==0.1.2", "typing-extensions"]
    subprocess.run(install, check=True)
    out = tmp_path / "actions.npy"
    port = url.rsplit(":", 1)[1]
    subprocess.run([python, CHILD, port, out], check=True, timeout=120)
    expected = policy.act([Observation(frame(0), "reach the red block")])[0]
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)
