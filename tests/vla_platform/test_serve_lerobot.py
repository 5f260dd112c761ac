"""LeRobot checkpoints served in LeRobot's own environment, asked as our pool asks."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from vla_platform import places
from vla_platform.candidates import Served, candidates
from vla_platform.courier import Courier
from vla_platform.remote import PolicyRefusedError
from vla_platform.store import open_store

from envs.api import Observation

ROOT = Path(__file__).parents[2]
MAKE = Path(__file__).with_name("lerobot_policy.py")
PYTHON = places.home() / "policies/lerobot/bin/python"
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no LeRobot at {PYTHON}: make lerobot"),
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/platform", "OMP_NUM_THREADS": "1"}
FRAME = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def checkpoint(tmp_path, kind):
    """A checkpoint's folder, and the actions that LeRobot's own loop executes."""
    np.save(tmp_path / "frame.npy", FRAME)
    files = [tmp_path / name for name in ("checkpoint", "frame.npy", "actions.npy")]
    subprocess.run([PYTHON, MAKE, *files, kind], check=True, timeout=300)
    return files[0], files[2]


def command(folder, told):
    asked = ["--policy", folder, "--benchmark", "tabletop", "--port", "0", "--json", told]
    return [PYTHON, "-m", "vla_platform.serve_lerobot", *asked]


@contextmanager
def served(folder, told):
    with subprocess.Popen(command(folder, told), env=ENVIRONMENT) as process:
        try:
            deadline = time.monotonic() + 120
            while not told.exists() or not told.read_text():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
            yield json.loads(told.read_text())[0]
        finally:
            process.kill()


def test_its_actions_are_lerobots_own(tmp_path):
    folder, actions = checkpoint(tmp_path, "act")
    with served(folder, tmp_path / "told.json") as declared:
        assert (declared["chunk"], declared["backbone"]) == (4, "LeRobot's act")
        store = open_store(str(tmp_path / "store"))
        [found] = candidates(declared["url"], ["tabletop"], store, Served("e", "libero", ""))
        assert found.horizon(None) == 2
        courier = Courier(None, 1, 60.0)
        wrist, state = {"robot0_eye_in_hand": FRAME[::-1]}, np.array([1, 2, 3, 0, 0, 0, 1, 4, 5.0])
        seen = Observation(FRAME, "reach the red block", wrist, state)
        chunk = courier.act(found.policy, seen, 4, 60.0)
        np.testing.assert_allclose(chunk, np.load(actions), atol=1e-5)
        assert np.abs(chunk).max() > 2  # in the units of its statistics
        again = courier.act(found.policy, replace(seen, seed=5), 4, 60.0)
        np.testing.assert_array_equal(again, chunk)
        [plain] = candidates(declared["url"], ["tabletop"], store, Served("e", "observation", ""))
        with pytest.raises(PolicyRefusedError, match="looks at 2 cameras"):
            courier.act(plain.policy, seen, 4, 60.0)


def test_a_policy_with_a_history_is_refused(tmp_path):
    folder, _ = checkpoint(tmp_path, "diffusion")
    asked = command(folder, tmp_path / "told.json")
    ended = subprocess.run(asked, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    assert "looks at 2 moments cannot be served" in ended.stderr
