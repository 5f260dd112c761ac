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


def run(store, wanted, cluster=CLUSTER, disturb=None):
    """Play with the given cluster; returns the tally and the rows."""
    ledger = Ledger(store)

    def pool():
        made = Pool(store, load_policy, cluster)
        if disturb:
            threading.Thread(target=disturb, daemon=True).start()
        return made

    tally = evaluation.play(ledger, [wanted], pool, lambda tally: None)
    return tally, outcomes(ledger, wanted)


def copy_of(store, tmp_path, name):
    """Another store with the same policy and no episodes."""
    other = open_store(str(tmp_path / name))
    for key in store.list("policies/"):
        other.put(key, store.get(key))
    return other


def test_rows_do_not_depend_on_pool_size_or_restarts(ray_cluster, checkpoint, tmp_path):
    store, policy = checkpoint
    wanted = wanted_of(Ledger(store), policy)
    tally, rows = run(store, wanted)
    assert (tally.done, len(tally.errors), len(rows)) == (12, 0, 12)
    again, same = run(store, wanted)
    assert (again.total, same) == (0, rows)
    small = copy_of(store, tmp_path, "small")
    _, alone = run(small, wanted, replace(CLUSTER, slots=1, hosts=1))
    assert alone == rows


def children():
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if "envs.worker" in " ".join(_command(p))]


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_killed_children_and_hosts_change_nothing(ray_cluster, checkpoint, tmp_path):
    store, policy = checkpoint
    wanted = wanted_of(Ledger(store), policy, trials=30)
    _, undisturbed = run(store, wanted)
    killed = []

    def disturb():
        deadline = time.monotonic() + 20
        while len(killed) < 4 and time.monotonic() < deadline:
            time.sleep(0.4)
            victims = children()
            if victims:
                killed.append(victims[0].pid)
                os.kill(victims[0].pid, signal.SIGKILL)
                host = victims[-1].parent()
                if len(killed) == 2 and host is not None and "Host" in " ".join(_command(host)):
                    host.kill()

    other = copy_of(store, tmp_path, "other")
    tally, rows = run(other, wanted, disturb=disturb)
    assert killed
    assert not tally.errors
    assert rows == undisturbed
    deadline = time.monotonic() + 10
    while children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children() == []


def test_wrong_word_is_another_cell(ray_cluster, checkpoint):
    store, policy = checkpoint
    ledger = Ledger(store)
    own = wanted_of(ledger, policy, tasks=("reach",), trials=2)
    wrong = replace(own, mode=evaluation.WRONG_WORD, instruct=wrong_instruction(ROW))
    assert own.cell().id != wrong.cell().id
    tally, rows = run(store, wrong)
    assert tally.done == 2
    assert rows


def test_another_environment_is_an_error_not_a_failure(ray_cluster, checkpoint):
    store, policy = checkpoint
    wanted = wanted_of(Ledger(store), policy, fingerprint="0" * 64, trials=1, tasks=("reach",))
    tally, rows = run(store, wanted)
    assert (tally.done, len(tally.errors), rows) == (0, 1, [])
    assert "WrongEnvironmentError" in tally.errors[0][1]
    assert Ledger(store).errors(wanted.cell())


def test_videos_are_made_afterwards_and_play(ray_cluster, checkpoint, tmp_path):
    import av

    store, policy = checkpoint
    wanted = wanted_of(Ledger(store), policy, tasks=("reach",), trials=2)
    run(store, wanted)
    keys = evaluation.film(Ledger(store), [wanted], 1, lambda: Pool(store, load_policy, CLUSTER))
    assert len(keys) == 1
    path = Path(tmp_path / "episode.mp4")
    store.download(keys[0], path)
    row = next(r for r in outcomes(Ledger(store), wanted) if r["key"] in keys[0])
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == row["steps"] + 1
