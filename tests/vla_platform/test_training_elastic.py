"""Training while machines and drivers come and go; each in a Ray cluster of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vla_platform import artifacts
from vla_platform.store import open_store

from tests.vlm4vla.train_worker import Plan, make_dataset, run_plan

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 2e-5
"""Of losses when the number of workers changes: sums are taken in another order."""
JOB = [
    *("jobs/train.py", "--backbone", "tiny-paligemma-1", "--init", "scratch", "--steps", "120"),
    *("--batch", "8", "--demonstrations", "3", "--checkpoint-every", "20"),
]


@pytest.mark.full
def test_a_lost_node_leaves_a_smaller_group_that_resumes(tmp_path):
    command = [sys.executable, "-m", "tests.vla_platform.elastic_child", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["attempts"] == ["2", "1"]
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    alone = run_plan(Plan("alone", {}), tmp_path, make_dataset(dataset))
    losses = [told["losses"][str(step)] for step in range(1, 7)]
    assert losses == pytest.approx([row["loss"] for row in alone], abs=TOLERANCE)


@pytest.mark.full
def test_a_killed_driver_starts_again_where_it_was(tmp_path):
    whole = start(tmp_path / "whole")
    assert whole.wait(300) == 0
    cut = start(tmp_path / "cut")
    deadline = time.monotonic() + 200
    while not steps(tmp_path / "cut") and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(cut.pid, signal.SIGKILL)
    cut.wait()
    before = steps(tmp_path / "cut")
    assert before and 120 not in before, "killed too late to say anything"
    again = start(tmp_path / "cut")
    assert again.wait(300) == 0
    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")


def start(folder):
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "VLA_HOME": str(folder / "home")}
    with (folder / "log").open("ab") as log:
        command = [sys.executable, *JOB, "--store", str(folder / "store")]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def steps(folder):
    """Digest of each complete checkpoint by step."""
    store = open_store(str(folder / "store"))
    runs = [name.rstrip("/") for name in store.children("policies")]
    return {c.step: c.digest for run in runs for c in artifacts.checkpoints(store, run)}
