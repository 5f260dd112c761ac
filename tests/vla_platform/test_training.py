"""Ray Train around the real loop: a worker that dies resumes from the last complete checkpoint."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from vla_platform import artifacts, training
from vla_platform.cluster import CLUSTERS
from vla_platform.demos import Demonstrations, collect
from vla_platform.store import open_store

from envs import tabletop
from envs.benchmarks import benchmark
from vlm4vla.data.dataset import build_manifest, encode_shard
from vlm4vla.run import Run
from vlm4vla.train import Engine, make_job, train

ROW = benchmark("tabletop")
ROW = replace(ROW, recipe=replace(ROW.recipe, checkpoints=(2, 4), warmup=1))


def dying_train(marker: Path, job, sink):
    """The real loop, but the first rank 0 to have committed step 2 is killed."""
    commit = sink.commit

    def commit_and_die(step):
        commit(step)
        if step == 2 and not marker.exists():
            marker.touch()
            os._exit(9)

    sink.commit = commit_and_die
    train(job, sink)


@pytest.fixture(scope="module")
def store(tmp_path_factory, ray_cluster):
    store = open_store(str(tmp_path_factory.mktemp("training") / "store"))
    wanted = Demonstrations((("reach", 6),), tabletop.DEMONSTRATIONS_FROM)
    shown = []
    manifest = collect(
        store, "toy", ROW, wanted, encode_shard, build_manifest, lambda *n: shown.append(n)
    )
    assert shown[-1] == (6, manifest.episodes, 6)
    return store


def fit(store, seed, loop):
    run = Run("tiny-paligemma-1", "tabletop", init="scratch", steps=4, batch=8, seed=seed)
    run = run.resolved(ROW.recipe)
    job = partial(make_job, run, ROW, Engine(), True)
    name = run.id(ROW) + loop.__class__.__name__
    return training.fit(loop, job, name, "toy", store, CLUSTERS["laptop"], "test", 4)


def test_a_killed_worker_resumes_and_ends_with_the_same_weights(store, tmp_path):
    undisturbed = fit(store, 1, train)
    marker = tmp_path / "died"
    disturbed = fit(store, 1, partial(dying_train, marker))
    assert marker.exists()
    assert [c.step for c in undisturbed] == [c.step for c in disturbed] == [0, 2, 4]
    assert [c.digest for c in undisturbed] == [c.digest for c in disturbed]
    assert len({c.digest for c in undisturbed}) == 3
    metrics = list(store.list(f"metrics/{undisturbed[0].run}/"))
    assert metrics


def test_an_error_of_the_loop_is_raised_not_swallowed(store, monkeypatch):
    monkeypatch.setattr(training, "MAX_FAILURES", 0)

    def broken(job, sink):
        raise ValueError("the loop's own words")

    with pytest.raises(Exception, match="the loop's own words"):
        fit(store, 2, broken)
    assert artifacts.checkpoints(store, "nothing") == []
