"""Pruning over both kinds of store: what goes, what stays, and that what stays still resumes."""

import hashlib
import os
import subprocess
import sys
import uuid
from pathlib import Path

from vla_platform import artifacts, prune
from vla_platform.ledger import Ledger
from vla_platform.rows import Cell, Row
from vla_platform.store import open_store
from vla_platform.store_sink import StoreSink

ROOT = Path(__file__).resolve().parents[2]
RUN = "run"


def checkpoint(store, step, evaluated=True, complete=True, attempt="a"):
    """A checkpoint of one worker with tiny files."""
    for name in (artifacts.WEIGHTS, artifacts.DESCRIPTION):
        store.put(f"{artifacts.checkpoint_prefix(RUN, step)}/{name}", f"{name}{step}".encode())
    state = f"state {step}".encode()
    key = f"{artifacts.state_prefix(RUN, step, attempt)}/zero0.safetensors"
    store.put(key, state)
    store.put(f"{key}.json", b"{}")
    if complete:
        digest = hashlib.sha256(f"{artifacts.WEIGHTS}{step}".encode()).hexdigest()
        parts = {"zero0.safetensors": hashlib.sha256(state).hexdigest()}
        artifacts.complete_policy(
            store, RUN, step, digest, evaluated=evaluated, attempt=attempt, state=parts
        )


def sink(store, tmp_path):
    return StoreSink(store, RUN, tmp_path / "scratch", lambda row: None, lambda: False)


def test_policies_that_are_evaluated_stay_and_states_but_the_last_two_go(store, tmp_path):
    checkpoint(store, 10, attempt="first")
    checkpoint(store, 15, evaluated=False)
    checkpoint(store, 20)
    checkpoint(store, 25, evaluated=False)
    checkpoint(store, 20, complete=False, attempt="killed")
    checkpoint(store, 30, complete=False)  # on its way
    what = prune.surplus(store, RUN)
    assert prune.delete(store, what) == len(what.keys) > 0
    left = artifacts.checkpoints(store, RUN)
    assert [(c.step, c.evaluated) for c in left] == [(10, True), (20, True), (25, False)]
    training = [key.split("/")[2:4] for key in store.list(f"training/{RUN}/")]
    assert [step for step, _ in training] == ["step-00000020", "step-00000025"] + [
        "step-00000030"
    ] * 2
    assert ["step-00000020", "killed"] not in training
    assert not list(store.list(f"policies/{RUN}/step-00000015/"))
    assert len(list(store.list(f"policies/{RUN}/step-00000030/"))) == 2
    assert sink(store, tmp_path).candidates() == [25, 20]
    folder = sink(store, tmp_path).fetch(25, "zero0.safetensors")
    assert (folder / "zero0.safetensors").read_text() == "state 25"
    assert prune.surplus(store, RUN).keys == ()


def finished(store, policy, trials=3):
    """A compacted cell of a policy, its loose rows still there."""
    cell, ledger = Cell(policy, "tabletop", 4, "f" * 64), Ledger(store)
    episodes = [cell.episode("reach", state, 0, "") for state in range(trials)]
    for episode in episodes:
        ledger.commit(Row(episode, True, True, True, 9, 3, 1.0, 1.0, uuid.uuid4().hex, "n"))
    assert ledger.compact(cell, episodes)
    return cell


def job(store, *flags):
    command = [sys.executable, "jobs/prune.py", "--store", store.url, *flags]
    environment = {**os.environ, "PYTHONPATH": "platform:."}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_job_prunes_the_loose_rows_of_compacted_cells(tmp_path):
    store = open_store(str(tmp_path / "store"))
    artifacts.complete_policy(store, RUN, 1, "a" * 64)
    cells = [finished(store, "a" * 64), finished(store, "b" * 64)]
    told = [Ledger(store).read(cell).table for cell in cells]
    left = lambda: [len(list(store.list(f"cells/{c.id}/episodes/"))) for c in cells]  # noqa: E731
    code, said = job(store)
    assert code == 0 and said.count("3 files are surplus, 0 deleted") == 2 and left() == [3, 3]
    assert job(store, "--runs", RUN, "--delete")[0] == 0 and left() == [0, 3]
    assert job(store, "--delete")[0] == 0 and left() == [0, 0]
    assert [Ledger(store).read(cell).table for cell in cells] == told
    (file,) = (key for key in store.list(f"cells/{cells[0].id}/") if "/cell-" in key)
    store.put(file, b"damaged")
    code, said = job(store, "--delete")
    assert code == 2 and "cannot be trusted" in said and "Traceback" not in said


def test_a_run_without_states_loses_nothing(store):
    artifacts.complete_policy(store, RUN, 0, "0" * 64)
    assert prune.surplus(store, RUN).keys == ()
    assert prune.runs(store) == [RUN]
