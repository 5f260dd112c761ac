"""A sweep of which one run cannot be trained: the others are, and it is told."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch
from vla_platform.cluster import CLUSTERS
from vla_platform.demos import Demonstrations
from vla_platform.store import open_store
from vla_platform.sweep import Sweep, Trials
from vla_platform.trained import training_of

from envs import tabletop
from envs.benchmarks import benchmark
from vlm4vla import science
from vlm4vla.run import Run

ROW = benchmark("tabletop")
ROW = replace(ROW, recipe=replace(ROW.recipe, checkpoints=(2,), warmup=1))


def make_job(run, *rest):
    if run.backbone == "tiny-paligemma-1":
        raise torch.OutOfMemoryError("CUDA out of memory: it never fits")
    return science.make_job(run, *rest)


def test_a_run_that_cannot_be_trained_ends_no_other(tmp_path, ray_cluster):
    known = {name: getattr(science, name) for name in science.__all__}
    broken = SimpleNamespace(**{**known, "make_job": make_job})
    data = Demonstrations((("reach", 3),), tabletop.DEMONSTRATIONS_FROM)
    trials, said = Trials(("reach",), 1, 4, None), []
    store = open_store(str(tmp_path / "store"))
    cluster = replace(CLUSTERS["laptop"], workers=(1, 1), replicas=1, hosts=1)
    make = partial(Run, benchmark="tabletop", init="scratch", steps=2, batch=8)
    with Sweep(store, ROW, cluster, broken, said.append) as sweep:
        setting = sweep.setting(data, trials)
        runs = [
            training_of(setting, make(name)) for name in ("tiny-paligemma-1", "tiny-qwen3vl-2b")
        ]
        report = sweep.run(runs, setting, trials)
    assert report.failed == {
        "tiny-paligemma-1": "OutOfMemoryError: CUDA out of memory: it never fits"
    }
    assert {result.name for result in report.results} == {"tiny-qwen3vl-2b"}
    assert report.played == 2 and not report.errors
    assert any("tiny-paligemma-1: not trained" in line for line in said)
