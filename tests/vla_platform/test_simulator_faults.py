"""Simulators in a pool: what breaks is begun again and ends in the same row; real ones' rows."""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest
from vla_platform import evaluation
from vla_platform.cluster import CLUSTERS, Limits
from vla_platform.evaluation import Wanted
from vla_platform.ledger import Ledger
from vla_platform.rollouts import Pool
from vla_platform.store import open_store

from envs.benchmarks import benchmark
from envs.process import SimulatorMissing, interpreter_for
from tests.envs.faulty_tabletop import FAULTS, fault_of
from tests.vla_platform.test_inference import checkpoint_of
from vlm4vla.export import load_policy

log = logging.getLogger(__name__)

LIMITS = Limits(reset=3.0, chunk=3.0)
CLUSTER = replace(CLUSTERS["laptop"], hosts=1, slots=4, batch=4)
VARYING = {"wall_s", "finished_at", "writer", "node", "worker", "error_count"}
SCENE_BYTES = 1e9
"""More than any other process of a pool holds."""
FAULTY = "tests.envs.faulty_tabletop:Faulty"


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A store with one policy, to be copied; and the policy's checkpoint."""
    folder = tmp_path_factory.mktemp("simulator-faults")
    store = open_store(str(folder / "store"))
    return store, checkpoint_of(store, folder / "policy", "tiny-paligemma-1")


def evaluate(policies, folder, row, horizon=2, cluster=CLUSTER, **wanted):
    """One evaluation on a store of its own: the tally and every stored row."""
    source, checkpoint = policies
    store = open_store(str(folder))
    for key in source.list("policies/"):
        store.put(key, source.get(key))
    ledger = Ledger(store)
    score = Wanted(checkpoint, row, horizon, evaluation.environment(ledger, row), **wanted)
    with Pool(store, load_policy, cluster) as pool:
        tally = evaluation.play(ledger, [score], lambda: pool, lambda tally: None)
    return tally, ledger.read(score.cell()).table.to_pylist()


def outcomes(rows):
    return [{name: row[name] for name in row.keys() - VARYING} for row in rows]


def test_each_kind_of_fault_is_retried_to_the_row_of_an_undisturbed_episode(
    ray_cluster, policies, tmp_path
):
    what = {"tasks": ("reach", "push"), "trials": 2 * len(FAULTS)}
    (tmp_path / "attempted").mkdir()
    # What Faulty is told: it is in the fingerprint, and so in the keys, that are compared.
    row = replace(benchmark("tabletop"), simulator_args={"folder": str(tmp_path / "attempted")})
    _, expected = evaluate(policies, tmp_path / "undisturbed", row, **what)
    broken = replace(row, simulator=FAULTY)
    impatient = replace(CLUSTER, limits=LIMITS)
    tally, rows = evaluate(policies, tmp_path / "disturbed", broken, cluster=impatient, **what)
    assert (tally.errors, len(rows)) == ([], 4 * len(FAULTS))
    assert outcomes(rows) == outcomes(expected)
    retries = {
        fault: {r["error_count"] for r in rows if fault_of(r["initial_state"]) == fault}
        for fault in FAULTS
    }
    assert retries == {fault: {int(fault != "prints garbage")} for fault in FAULTS}


def installed(simulator: str) -> str:
    """Why its tests are skipped; "" where it is there."""
    try:
        interpreter_for(simulator)
    except SimulatorMissing as missing:
        return str(missing)
    return ""


needs_libero = pytest.mark.skipif(bool(installed("libero")), reason=installed("libero"))


def short(suite: str, steps: int):
    """A suite whose episodes end after a few steps: a reset, replans and frames like any."""
    return replace(benchmark(suite), step_limits={"*": steps})


def pool_processes() -> list[psutil.Process]:
    """Hosts, replicas and simulators of this process's cluster."""
    kinds = ("envs.worker", "ray::Host", "ray::Replica")
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(kind in " ".join(process.cmdline()) for kind in kinds):
                found.append(process)
        except psutil.Error:
            continue
    return found


def pool_rss() -> int:
    """Bytes. A process that ends meanwhile counts for nothing."""
    total = 0
    for process in pool_processes():
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


@needs_libero
@pytest.mark.full
def test_libero_killed_and_stopped_in_a_pool_ends_in_the_same_rows(ray_cluster, policies, tmp_path):
    """SIGKILL and SIGSTOP on a seeded schedule."""
    row = short("libero_object", 40)
    what = {"tasks": row.tasks[:1], "trials": 8}
    _, expected = evaluate(policies, tmp_path / "undisturbed", row, **what)
    patient = replace(CLUSTER, limits=Limits(reset=90.0, chunk=20.0))
    dice, over, sent = random.Random(4), [], []

    def disturb():
        while not over and len(sent) < 4:
            time.sleep(dice.uniform(4, 8))
            # One whose scene is built: what hangs before is noticed only after minutes.
            victims = [p for p in pool_processes() if p.memory_info().rss > SCENE_BYTES]
            if victims:
                sent.append((signal.SIGKILL, signal.SIGSTOP)[len(sent) % 2])
                os.kill(victims[0].pid, sent[-1])

    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(disturb)
        try:
            tally, rows = evaluate(policies, tmp_path / "disturbed", row, cluster=patient, **what)
        finally:
            over.append(True)
        running.result()
    assert {signal.SIGKILL, signal.SIGSTOP} <= set(sent)
    assert tally.retried >= 2
    assert (tally.errors, outcomes(rows)) == ([], outcomes(expected))


@needs_libero
@pytest.mark.full
def test_a_pools_memory_stays_level_over_200_libero_episodes(ray_cluster, policies, tmp_path):
    """Of all its processes: four tasks, so scenes are rebuilt too."""
    source, checkpoint = policies
    row, ledger, sizes = short("libero_object", 4), Ledger(source), {}
    found = evaluation.environment(ledger, row)
    score = Wanted(checkpoint, row, row.chunk, found, tasks=row.tasks[:4], trials=50)
    with Pool(source, load_policy, CLUSTER) as pool:

        def watch(tally):
            sizes.setdefault(tally.done, pool_rss())

        tally = evaluation.play(ledger, [score], lambda: pool, watch)
    assert (tally.done, tally.errors) == (200, [])
    early = max(size for done, size in sizes.items() if 0 < done <= 20)
    late = max(size for done, size in sizes.items() if 180 < done < 200)
    log.info("pool of LIBERO: %.0f MB in 20 episodes, %.0f MB at the end", early / 1e6, late / 1e6)
    assert late <= 1.1 * early


@pytest.mark.full
@pytest.mark.parametrize("name", ["libero_object", "calvin", "simpler"])
def test_rows_carry_both_success_rules_and_their_environment(ray_cluster, policies, tmp_path, name):
    row = short(name, 8)
    if reason := installed(row.simulator):
        pytest.skip(reason)
    tally, rows = evaluate(policies, tmp_path / "store", row, 4, tasks=row.tasks[:1], trials=1)
    assert (tally.errors, len(rows)) == ([], 1)
    assert {type(rows[0][rule]) for rule in ("success_any", "success_last")} == {bool}
    found = Ledger(open_store(str(tmp_path / "store"))).fingerprint(rows[0]["fingerprint"])
    assert found["renderer"] and len(found["assets"]) == 16
    assert {"numpy", "python"} < set(found)
