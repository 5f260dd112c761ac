"""A policy server as a user starts it: it answers, and says when its port is taken."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from vla_platform.remote import pack, unpack
from websockets.sync.client import connect

from envs.benchmarks import benchmark

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0


def serve(store, *flags):
    command = [sys.executable, "jobs/serve_policy.py", "--store", store, "--threads", "1"]
    command += ["--backbone", "tiny-paligemma-1", *flags]
    return subprocess.Popen(
        [*map(str, command)], cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


@pytest.fixture
def url(tmp_path):
    out = tmp_path / "served.json"
    with serve(tmp_path / "store", "--port", "0", "--json", out) as server:
        deadline = time.monotonic() + PATIENCE_S
        while not (out.exists() and out.read_text().endswith("\n")):
            assert server.poll() is None and time.monotonic() < deadline, server.communicate()
            time.sleep(0.2)
        yield json.loads(out.read_text())[0]["url"]
        server.terminate()


def test_it_says_what_it_serves_and_answers(url):
    row = benchmark("tabletop")
    with connect(url, compression=None, max_size=None) as line:
        declared = unpack(line.recv())
        assert (declared["backbone"], declared["chunk"]) == ("tiny-paligemma-1", row.chunk)
        assert declared["policy"].startswith("untrained-")
        frame = np.zeros((224, 224, 3), np.uint8)
        line.send(pack({"image": frame, "prompt": "reach the red block"}))
        actions = unpack(line.recv())["actions"]
    assert actions.shape == (row.chunk, 7) and np.isfinite(actions).all()


def test_a_port_that_is_taken_is_a_sentence_with_the_remedy(url, tmp_path):
    taken = url.rpartition(":")[2]
    with serve(tmp_path / "store", "--port", taken) as second:
        _, said = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 2
    assert f"error: cannot serve at 127.0.0.1:{taken}" in said
    assert "--port 0 takes any free one" in said and "Traceback" not in said
