"""Auxiliary stages in the store: trained once under a lease, scored, and started from."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from vla_platform import artifacts, curves, stages
from vla_platform.cluster import CLUSTERS
from vla_platform.contest import Rules
from vla_platform.demos import Demonstrations
from vla_platform.store import open_store
from vla_platform.trained import Setting, ensure_trained, training_of

from envs.benchmarks import benchmark
from vlm4vla import science
from vlm4vla.aux import questions
from vlm4vla.aux.readers import read
from vlm4vla.run import Run
from vlm4vla.stages import AuxStage

ROW = benchmark("tabletop")
ROW = replace(ROW, recipe=replace(ROW.recipe, checkpoints=(2,), warmup=1))
CLUSTER = replace(CLUSTERS["laptop"], workers=(1, 1))
STAGE = AuxStage(
    "toy",
    "tiny-paligemma-1",
    (("tabletop-number", 1.0), ("tabletop-choice", 1.0)),
    steps=3,
    batch=8,
    lr=2e-3,
    warmup=1,
)


@pytest.fixture
def setting(ray_cluster, tmp_path):
    store = open_store(str(tmp_path / "store"))
    few = [replace(row, samples=32) for row in STAGE.rows]
    sources = {row.name: (row.samples, read(row, tmp_path)) for row in few}
    questions.prepare(STAGE.data, sources, artifacts.dataset_put(store, STAGE.data))
    demonstrations = Demonstrations((("reach", 4),), ROW.demonstrations_from)
    rules = Rules(("reach",), 1, (2,))
    common = (store, ROW, CLUSTER, science, "fingerprint", demonstrations, rules)
    return Setting(*common, {STAGE.id: STAGE})


def run(**fields):
    return Run("tiny-paligemma-1", "tabletop", aux=STAGE.id, steps=2, batch=8, **fields)


def weights(store, name, step):
    (found,) = [c for c in artifacts.checkpoints(store, name) if c.step == step]
    return load_file(artifacts.fetch_policy(store, found) / artifacts.WEIGHTS)


@pytest.mark.full
def test_runs_that_start_from_one_stage_train_it_once(setting):
    store = setting.store
    runs = [training_of(setting, run(seed=seed)) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as at_once:
        list(at_once.map(partial(ensure_trained, setting), runs))

    turns = [name for name in store.children(f"leases/stages/{STAGE.id}") if name.isdigit()]
    assert turns == ["00000001"]
    assert [row["step"] for row in curves.read(store, STAGE.id)] == [1, 2, 3]
    assert [c.step for c in artifacts.checkpoints(store, STAGE.id)] == [3]

    told = stages.record(store, STAGE.id)
    assert told["stage"]["name"] == "toy"
    assert (
        set(told["before"])
        == set(told["after"])
        == {
            "tabletop-number/number",
            "tabletop-choice/choice",
        }
    )
    assert told["counts"] == {"tabletop-number": [28, 4], "tabletop-choice": [28, 4]}
    assert told["left_out"] == []

    learned = weights(store, STAGE.id, 3)
    for each in runs:
        start = weights(store, each.id, 0)
        assert all(torch.equal(start[name], tensor) for name, tensor in learned.items())
        after = weights(store, each.id, 2)
        assert not torch.equal(after["query"], start["query"])


def test_data_that_nobody_prepared_are_asked_for(setting):
    stage = replace(STAGE, mixture=(("robo2vlm", 1.0),))
    asked = r"robo2vlm \(keplerccc/Robo2VLM-1\).*prepare_questions"
    with pytest.raises(FileNotFoundError, match=asked):
        stages.ensure(setting.store, CLUSTER, science, stage, {})


def test_published_weights_are_not_trained(tmp_path):
    store = open_store(str(tmp_path / "store"))
    assert stages.ensure(store, CLUSTER, science, replace(STAGE, weights="hub/id"), {}) is None
    assert list(store.list("leases/")) == []
