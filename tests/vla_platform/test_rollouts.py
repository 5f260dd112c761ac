"""The pool with real children, a real policy and a real ledger."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from vla_platform import evaluation
from vla_platform.cluster import CLUSTERS
from vla_platform.evaluation import Wanted
from vla_platform.ledger import Ledger
from vla_platform.rollouts import Pool
from vla_platform.store import open_store

from envs.benchmarks import benchmark, wrong_instruction
from tests.vla_platform.test_inference import checkpoint_of
from vlm4vla.export import load_policy

ROW = benchmark("tabletop")
CLUSTER = replace(CLUSTERS["laptop"], slots=4, hosts=2, batch=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollouts")
    store = open_store(str(folder / "store"))
    return store, checkpoint_of(store, folder / "policy", "tiny-paligemma-1")


def wanted_of(ledger, checkpoint, **changes):
    fields = {
        "checkpoint": checkpoint,
        "benchmark": ROW,
        "horizon": 2,
        "fingerprint": evaluation.environment(ledger, ROW),
        "tasks": ("reach", "push"),
        "trials": 6,
        **changes,
    }
    return Wanted(**fields)


def outcomes(ledger, wanted):
    columns = ["key", "task", "initial_state", "success", "steps", "replans"]
    return ledger.read(wanted.cell()).table.select(columns).to_pylist()


def run(pool, wanted, disturb=None):
    """Play in the given pool; returns the tally and the rows."""
    ledger = Ledger(pool.store)

    def disturbed():
        if disturb:
            threading.Thread(target=disturb, daemon=True).start()
        return pool

    tally = evaluation.play(ledger, [wanted], disturbed, lambda tally: None)
    return tally, outcomes(ledger, wanted)


@pytest.fixture(scope="module")
def pool(ray_cluster, checkpoint):
    with Pool(checkpoint[0], load_policy, CLUSTER) as made:
        yield made


def copy_of(store, tmp_path, name):
    """Another store with the same policy and no episodes."""
    other = open_store(str(tmp_path / name))
    for key in store.list("policies/"):
        other.put(key, store.get(key))
    return other


def test_rows_do_not_depend_on_pool_size_or_restarts(pool, checkpoint, tmp_path):
    store, policy = checkpoint
    wanted = wanted_of(Ledger(store), policy)
    tally, rows = run(pool, wanted)
    assert (tally.done, len(tally.errors), len(rows)) == (12, 0, 12)
    again, same = run(pool, wanted)
    assert (again.total, same) == (0, rows)
    small = copy_of(store, tmp_path, "small")
    with Pool(small, load_policy, replace(CLUSTER, slots=1, hosts=1)) as single:
        _, alone = run(single, wanted)
    assert alone == rows


def children():
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if "envs.worker" in " ".join(_command(p))]


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_killed_children_and_hosts_change_nothing(pool, checkpoint, tmp_path):
    store, policy = checkpoint
    wanted = wanted_of(Ledger(store), policy, trials=30)
    _, undisturbed = run(pool, wanted)
    killed = []

    def disturb():
        deadline = time.monotonic() + 20
        while len(killed) < 4 and time.monotonic() < deadline:
            time.sleep(0.4)
            victims = [child for child in children() if child.pid not in before]
            if victims:
                killed.append(victims[0].pid)
                os.kill(victims[0].pid, signal.SIGKILL)
                host = victims[-1].parent()
                if len(killed) == 2 and host is not None and "Host" in " ".join(_command(host)):
                    host.kill()

    other = copy_of(store, tmp_path, "other")
    before = {child.pid for child in children()}
    with Pool(other, load_policy, CLUSTER) as fresh:
        tally, rows = run(fresh, wanted, disturb=disturb)
    assert killed
    assert not tally.errors
    assert rows == undisturbed
    deadline = time.monotonic() + 10
    while (left := {c.pid for c in children()} - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_wrong_word_is_another_cell(pool, checkpoint):
    store, policy = checkpoint
    ledger = Ledger(store)
    own = wanted_of(ledger, policy, tasks=("reach",), trials=2)
    wrong = replace(own, mode=evaluation.WRONG_WORD, instruct=wrong_instruction(ROW))
    assert own.cell().id != wrong.cell().id
    tally, rows = run(pool, wrong)
    assert tally.done == 2
    assert rows


def test_another_environment_is_an_error_not_a_failure(pool, checkpoint):
    store, policy = checkpoint
    wanted = wanted_of(Ledger(store), policy, fingerprint="0" * 64, trials=1, tasks=("reach",))
    tally, rows = run(pool, wanted)
    assert (tally.done, len(tally.errors), rows) == (0, 1, [])
    assert "WrongEnvironmentError" in tally.errors[0][1]
    assert Ledger(store).errors(wanted.cell())


def test_videos_are_made_afterwards_and_play(pool, checkpoint, tmp_path):
    import av

    store, policy = checkpoint
    wanted = wanted_of(Ledger(store), policy, tasks=("reach",), trials=2)
    run(pool, wanted)
    keys = evaluation.film(Ledger(store), [wanted], 1, lambda: pool)
    assert len(keys) == 1
    path = Path(tmp_path / "episode.mp4")
    store.download(keys[0], path)
    row = next(r for r in outcomes(Ledger(store), wanted) if r["key"] in keys[0])
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == row["steps"] + 1
