"""A pool whose nodes come and go, and a driver that is told to go."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vla_platform.ledger import Ledger
from vla_platform.store import open_store

from tests.vla_platform.elastic import EPISODES
from tests.vla_platform.test_remote import server

ROOT = Path(__file__).resolve().parents[2]


def rows_of(url):
    ledger = Ledger(open_store(str(url)))
    [cell] = ledger.cells()
    columns = ["key", "success", "steps", "replans", "final_frame"]
    found = ledger.read(cell)
    assert not found.problems
    return found.table.select(columns).to_pylist()


@pytest.fixture(scope="module")
def policy():
    with server("steady") as url:
        yield url


@pytest.mark.full
@pytest.mark.parametrize("scenario", ["grow", "shrink", "drain"])
def test_nodes_come_and_go(policy, tmp_path, scenario):
    command = [sys.executable, "-m", "tests.vla_platform.elastic", scenario, tmp_path, policy]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    out = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    seen = json.loads(out.stdout.strip().splitlines()[-1])
    assert (seen["done"], seen["errors"], len(rows_of(tmp_path))) == (EPISODES, [], EPISODES), seen
    assert seen["waits"], "hosts that wait for a place are what makes an autoscaler add nodes"
    assert seen["most"] == 2, seen
    if scenario == "grow":
        assert seen["last"] == 2 and seen["lost"] == 0
    if scenario == "shrink":
        assert seen["lost"] == 1, "no more than the episode in flight"
    if scenario == "drain":
        assert seen["lost"] == 0, "what flew there landed"


def evaluate(store, policy, *more):
    command = [sys.executable, "jobs/evaluate.py", "--policy", policy, "--benchmark", "tabletop"]
    command += ["--store", store, "--tasks", "reach", "--trials", "80", "--evaluation", "e"]
    command += ["--horizons", "4"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*map(str, command), *more],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def committed(store):
    return len(list(Path(store).glob("cells/*/episodes/*.parquet")))


@pytest.mark.full
def test_told_to_go_a_job_lands_what_flies_and_the_next_one_continues(policy, tmp_path):
    job = evaluate(tmp_path / "store", policy)
    deadline = time.monotonic() + 90
    while committed(tmp_path / "store") < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    told = time.monotonic()
    _, said = job.communicate(timeout=60)
    assert job.returncode == 75, said[-2000:]
    assert time.monotonic() - told < 45
    kept = committed(tmp_path / "store")
    assert 5 <= kept < 80
    assert f"stopped in order (SIGTERM): {kept} of 80 episodes are committed, 0 in flight" in said
    again = evaluate(tmp_path / "store", policy)
    out, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors[-2000:]
    assert f"played {80 - kept} episodes" in out
    straight = evaluate(tmp_path / "straight", policy)
    assert straight.wait(timeout=120) == 0
    assert rows_of(tmp_path / "store") == rows_of(tmp_path / "straight")
