"""The pool with real children, a real policy and a real ledger."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from vla_platform import evaluation
from vla_platform.cluster import CLUSTERS
from vla_platform.evaluation import Wanted
from vla_platform.ledger import Ledger
from vla_platform.player import Played, Player
from vla_platform.rollouts import Pool
from vla_platform.rows import OUTCOME, Row
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
    killed, hosts = [], []

    def disturb():
        deadline = time.monotonic() + 20
        while len(killed) < 4 and time.monotonic() < deadline:
            time.sleep(0.2)
            victims = [child for child in children() if child.pid not in before]
            if victims and not hosts:
                host = victims[-1].parent()
                if host is not None and "Host" in " ".join(_command(host)):
                    host.kill()
                    hosts.append(host.pid)
            elif victims:
                killed.append(victims[0].pid)
                os.kill(victims[0].pid, signal.SIGKILL)

    other = copy_of(store, tmp_path, "other")
    before = {child.pid for child in children()}
    with Pool(other, load_policy, CLUSTER) as fresh:
        tally, rows = run(fresh, wanted, disturb=disturb)
    assert killed and hosts
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
    [(_, said)] = tally.errors
    assert said.startswith("WrongEnvironmentError: tabletop on this node is not the")
    [kept] = Ledger(store).errors(wanted.cell())
    assert "in check" in kept["message"], "the line of the code that raised it"
    assert kept["message"].splitlines()[-1] in said and "\n" not in said


def test_an_error_of_a_simulator_is_shown_by_its_last_line_and_kept_whole(pool, checkpoint):
    store, policy = checkpoint
    row = replace(ROW, simulator="tests.vla_platform.leaky_simulator:Raising")
    one = {"tasks": ("reach",), "trials": 1, "horizon": 4}
    wanted = wanted_of(Ledger(store), policy, benchmark=row, **one)
    tally, rows = run(pool, wanted)
    assert rows == []
    assert [said for _, said in tally.errors] == ["SimulatorDied: RuntimeError: scene 7 is missing"]
    [kept] = Ledger(store).errors(wanted.cell())
    assert 'leaky_simulator.py", line' in kept["message"] and kept["cause"] == "SimulatorDied"


def test_videos_are_made_afterwards_and_play(pool, checkpoint, tmp_path):
    import av

    store, policy = checkpoint
    wanted = wanted_of(Ledger(store), policy, tasks=("reach",), trials=2)
    run(pool, wanted)
    player, report = Player(store, CLUSTER, print), Played()
    player.pool, player.connected = pool, True
    player.film([wanted], 1, report)
    keys = report.videos
    assert len(keys) == 1 and not report.errors
    assert report.seconds > 0
    path = Path(tmp_path / "episode.mp4")
    store.download(keys[0], path)
    row = next(r for r in outcomes(Ledger(store), wanted) if r["key"] in keys[0])
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == row["steps"] + 1


def test_a_replay_that_differs_from_its_row_is_said_loudly_and_leaves_no_video(
    pool, checkpoint, tmp_path
):
    store, policy = checkpoint
    wanted = wanted_of(Ledger(store), policy, tasks=("push",), trials=1)
    run(pool, wanted)
    [row] = Ledger(store).read(wanted.cell()).table.to_pylist()[:1]
    [episode] = wanted.episodes()
    forged = copy_of(store, tmp_path, "forged")
    outcome = {name: row[name] for name in OUTCOME} | {"final_frame": "0" * 16}
    Ledger(forged).commit(
        Row(episode=episode, **outcome, wall_s=1.0, finished_at=1.0, writer="someone")
    )
    with Pool(forged, load_policy, CLUSTER) as other:
        filmed = evaluation.film(Ledger(forged), [wanted], 1, lambda: other)
    assert filmed.keys == [] and not list(forged.list("videos/"))
    [(_, reason)] = filmed.errors
    assert "ReplayDiffersError" in reason and "final_frame: row '0000000000000000'" in reason
    assert [e["cause"] for e in Ledger(forged).errors(wanted.cell())] == ["ReplayDiffersError"]


class NotANumber:
    batch_invariant = True

    def group(self, observation):
        return 16

    def act(self, observations, length):
        return np.full((len(observations), 4, 7), np.nan, np.float32)


def load_nan(folder):
    return NotANumber()


def test_actions_that_are_no_numbers_are_errors_in_the_policys_name_and_not_retried(
    ray_cluster, checkpoint, tmp_path
):
    store, policy = checkpoint
    other = copy_of(store, tmp_path, "nan")
    wanted = wanted_of(Ledger(other), policy, trials=2)
    with Pool(other, load_nan, CLUSTER) as fresh:
        tally, rows = run(fresh, wanted)
    assert (tally.done, tally.retried, rows) == (0, 0, [])
    assert len(tally.errors) == 4
    for _, reason in tally.errors:
        assert reason.startswith("BadActionsError") and policy.run in reason
        assert "not finite" in reason
    assert len(Ledger(other).errors(wanted.cell())) == 4
