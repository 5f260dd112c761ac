"""The supervisor: every way a child can fail, and that nothing outlives its parent."""

import dataclasses
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from envs import tabletop
from envs.child import ROOT
from envs.process import (
    SimulatorDied,
    SimulatorMissing,
    SimulatorProcess,
    interpreter_for,
    require_interpreters,
)
from tests.envs.fake_simulator import ROW

ACTIONS = np.ones((4, 7), np.float32)


@pytest.fixture
def fake():
    with SimulatorProcess(ROW) as process:
        yield process


def alive(pid: int) -> bool:
    """Running, and not a zombie that its parent has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def child_pid(process: SimulatorProcess) -> int:
    return process._child.popen.pid


def episode(process: SimulatorProcess, task: str = "count") -> list:
    """An episode to its end: instructions, steps and outcomes."""
    first = process.reset(task, 3, 5)
    results = [process.execute(ACTIONS) for _ in range(3)]
    return [first.instruction] + [(r.observation.instruction, r.steps, r.done) for r in results]


def test_an_episode_ends_at_the_step_limit(fake):
    assert [row[1:] for row in episode(fake)[1:]] == [(4, False), (4, False), (2, True)]
    with pytest.raises(RuntimeError, match="call reset"):
        fake.execute(ACTIONS)


def test_recording_returns_a_frame_for_every_step(fake):
    fake.reset("count", 0, 0, record=True)
    assert len(fake.execute(ACTIONS).frames) == 4


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("exit in reset", ["'reset'", "exit code 7", "no such display"]),
        ("hang in reset", ["longer than 1 s", "'reset'", "killed", "fake_simulator.py"]),
        ("wrong dtype", ["float16"]),
        ("grey", ["sent a malformed message", "'image' is uint8 [8, 8]"]),
    ],
)
def test_faults_in_reset_are_explained_and_survived(fake, task, says):
    expected = episode(fake)
    with pytest.raises(SimulatorDied) as died:
        fake.reset(task, 0, 0, timeout=1)
    assert all(part in str(died.value) for part in says), str(died.value)
    assert episode(fake) == expected


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("segfault", ["'execute'", "signal SIGSEGV", "Fatal Python error"]),
        ("killed", ["signal SIGKILL"]),
        ("raise", ["ZeroDivisionError: the arm left the table"]),
        ("hang", ["longer than 1 s", "killed", "_hang"]),
    ],
)
def test_faults_in_a_chunk_are_explained_and_survived(fake, task, says):
    expected = episode(fake)
    fake.reset(task, 0, 0)
    pid = child_pid(fake)
    with pytest.raises(SimulatorDied) as died:
        fake.execute(ACTIONS, timeout=1)
    assert all(part in str(died.value) for part in says), str(died.value)
    assert not alive(pid)
    with pytest.raises(RuntimeError, match="call reset"):
        fake.execute(ACTIONS)
    assert episode(fake) == expected


def test_garbage_on_stdout_changes_nothing(fake):
    expected = episode(fake)
    pid = child_pid(fake)
    assert episode(fake, "garbage") == expected
    assert child_pid(fake) == pid


def test_a_child_killed_between_calls_is_replaced(fake):
    expected = episode(fake)
    os.kill(child_pid(fake), signal.SIGKILL)
    time.sleep(0.1)
    assert episode(fake) == expected


def test_a_stopped_child_is_killed_at_the_deadline(fake):
    fake.reset("count", 0, 0)
    pid = child_pid(fake)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(SimulatorDied, match="longer than"):
        fake.execute(ACTIONS, timeout=0.5)
    assert not alive(pid)


def test_the_reason_survives_pickling():
    died = pickle.loads(pickle.dumps(SimulatorDied("no EGL")))
    assert (died.reason, str(died)) == ("no EGL", "no EGL")


def test_wrong_arguments_never_reach_the_child(fake):
    with pytest.raises(ValueError, match="Did you mean 'count'"):
        fake.reset("cuont", 0, 0)
    fake.reset("count", 0, 0)
    with pytest.raises(ValueError, match=r"shape \(7,\)"):
        fake.execute(np.zeros(7))


def test_a_missing_interpreter_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("VLA_HOME", str(tmp_path))
    monkeypatch.delenv("VLA_LIBERO_PYTHON", raising=False)
    with pytest.raises(SimulatorMissing, match=r"run `make libero`, or name .* VLA_LIBERO_PYTHON"):
        interpreter_for("libero")
    with pytest.raises(
        SimulatorMissing, match=r"list its packages in .*requirements-dot\.txt, then"
    ):
        interpreter_for("dot")
    monkeypatch.setenv("VLA_LIBERO_PYTHON", sys.executable)
    assert interpreter_for("libero") == sys.executable


def test_all_missing_interpreters_are_named_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("VLA_HOME", str(tmp_path))
    for name in ("LIBERO", "CALVIN"):
        monkeypatch.delenv(f"VLA_{name}_PYTHON", raising=False)
    monkeypatch.setenv("VLA_SIMPLER_PYTHON", sys.executable)
    require_interpreters(["simpler", "tabletop"])
    with pytest.raises(SimulatorMissing) as missing:
        require_interpreters(["libero", "tabletop", "calvin", "simpler", "libero"])
    assert re.findall(r"`make (\w+)`", str(missing.value)) == ["libero", "calvin"]


def test_a_child_is_given_no_secret(monkeypatch):
    """A simulator's packages are strangers: the store's keys and Ray's token are not for them."""
    secrets = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "RAY_AUTH_TOKEN", "HF_TOKEN")
    for name in (*secrets, "VLA_HARMLESS"):
        monkeypatch.setenv(name, "planted")
    with SimulatorProcess(ROW) as process:
        process.reset("count", 0, 0)
        told = Path(f"/proc/{child_pid(process)}/environ").read_text().split("\0")
    assert [line for line in told if line.endswith("=planted")] == ["VLA_HARMLESS=planted"]


def test_a_child_outlives_the_thread_that_started_it(fake):
    thread = threading.Thread(target=fake.reset, args=("count", 0, 0))
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert fake.execute(ACTIONS).steps == 4


def test_a_child_is_replaced_after_the_episodes_that_its_simulator_allows():
    row = dataclasses.replace(ROW, simulator_args={"episodes_per_process": 2})
    pids = []
    with SimulatorProcess(row) as process:
        for _ in range(5):
            process.reset("count", 0, 0)
            pids.append(child_pid(process))
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


def test_many_simulators_live_in_one_process():
    processes = [SimulatorProcess(ROW) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        episodes = list(pool.map(episode, processes))
    assert all(rows == episodes[0] for rows in episodes)
    assert all(process.rss_bytes() > 1e6 for process in processes)
    for process in processes[:2]:
        process.close()
    for process in processes[2:]:
        process.kill()
    assert [process.rss_bytes() for process in processes] == [0] * 4


ORPHAN = """
import sys
from envs.process import SimulatorProcess
from tests.envs.fake_simulator import ROW
process = SimulatorProcess(ROW)
process.reset("hang", 0, 0)
print(process._child.popen.pid, flush=True)
process.execute([[0.0] * 7])
"""


def test_no_child_outlives_a_killed_parent():
    command = [sys.executable, "-c", ORPHAN]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(pid)


def test_a_dropped_supervisor_takes_its_child_along():
    process = SimulatorProcess(ROW)
    process.reset("count", 0, 0)
    pid = child_pid(process)
    del process
    assert not alive(pid)


def test_the_tabletop_runs_in_a_child():
    row = next(iter(tabletop.BENCHMARKS.values()))
    with SimulatorProcess(row) as process:
        image = process.reset(row.tasks[0], 0, 0).image
        assert image.dtype == np.uint8
        assert process.execute(np.zeros((2, 7))).steps == 2
        assert process.fingerprint()


def _fingerprint(row):
    with SimulatorProcess(row) as process:
        return process.fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"step_limits": {"*": 7}},
        {"success_rule": "last_step"},
        {"simulator_args": {"anything": 1}},
        {"chain": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_rows_rules_are_in_its_fingerprint(changes):
    """Or scores would count episodes that were played by others."""
    row = next(iter(tabletop.BENCHMARKS.values()))
    found, known = (_fingerprint(each) for each in (dataclasses.replace(row, **changes), row))
    assert found.pop("rules") != known.pop("rules")
    assert found == known
