"""Whole episodes bit for bit: alone, in company, in pools of any size, after restarts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vla_platform import evaluation
from vla_platform.cluster import CLUSTERS
from vla_platform.evaluation import Wanted
from vla_platform.ledger import Ledger
from vla_platform.rollouts import Pool
from vla_platform.store import Store, open_store

from envs.benchmarks import benchmark
from tests.vla_platform.faults import COMPARED
from tests.vla_platform.test_inference import ARCHITECTURES, checkpoint_of
from vlm4vla.export import load_policy

ROW = replace(benchmark("tabletop"), step_limits={"*": 12})
TASKS = ("reach", "push")
SMALL = replace(CLUSTERS["laptop"], slots=1, hosts=1, batch=4)
LARGE = replace(SMALL, slots=4, hosts=2)


def copy_of(store: Store, folder: Path) -> Store:
    """A store with the same policy and no episodes."""
    other = open_store(str(folder))
    for key in store.list("policies/"):
        other.put(key, store.get(key))
    return other


def play(store: Store, cluster: Any, wanted: Wanted) -> list[dict[str, Any]]:
    """Everything missing, in a pool of its own; the rows."""
    ledger = Ledger(store)
    with Pool(store, load_policy, cluster) as pool:
        tally = evaluation.play(ledger, [wanted], lambda: pool, lambda tally: None)
    assert not tally.errors, tally.errors[:2]
    table = ledger.read(wanted.cell()).require_sound()
    return list(table.select(COMPARED).to_pylist())


@pytest.mark.full
@pytest.mark.parametrize("backbone", ARCHITECTURES)
def test_episodes_do_not_depend_on_pool_or_restart(ray_cluster, tmp_path: Path, backbone: str):
    store = open_store(str(tmp_path / "large"))
    policy = checkpoint_of(store, tmp_path / "policy", backbone)
    fingerprint = evaluation.environment(Ledger(store), ROW)
    wanted = Wanted(policy, ROW, 2, fingerprint, TASKS, trials=5)
    company = play(store, LARGE, wanted)
    assert len(company) == 10
    assert len({row["final_frame"] for row in company}) > 5
    alone = copy_of(store, tmp_path / "alone")
    assert play(alone, SMALL, wanted) == company
    restarted = copy_of(store, tmp_path / "restarted")
    play(restarted, LARGE, replace(wanted, trials=2))
    assert play(restarted, SMALL, wanted) == company
