"""The training loop without Ray: one process, a folder for a store."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from envs import tabletop
from envs.benchmarks import benchmark
from envs.experts.tabletop import demonstrate
from vlm4vla.data.dataset import build_manifest, encode_shard
from vlm4vla.export import load_policy
from vlm4vla.run import Run
from vlm4vla.train import Engine, TrainingDivergedError, TrainJob, deepspeed_config, train

ROW = benchmark("tabletop")
ROW = replace(ROW, recipe=replace(ROW.recipe, checkpoints=(2, 4), warmup=1))


class Stopped(Exception):
    pass


class FolderSink:
    """Keeps checkpoints in a folder; stops the run after `stop` if asked to."""

    def __init__(self, folder, stop=None):
        self.folder, self.stop, self.metrics = folder, stop, []

    def latest(self):
        done = sorted(self.folder.glob("step-*/complete"))
        return (int(done[-1].parent.name[5:]), done[-1].parent) if done else None

    def publish(self, step, folder, rank):
        shutil.copytree(folder, self.folder / f"step-{step:08d}")

    def commit(self, step):
        (self.folder / f"step-{step:08d}" / "complete").touch()
        if step == self.stop:
            raise Stopped

    def report(self, step, metrics):
        self.metrics.append((step, metrics))

    def weights(self, step):
        return load_file(self.folder / f"step-{step:08d}" / "policy.safetensors")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    demos = [demonstrate("reach", tabletop.DEMONSTRATIONS_FROM + i, 0) for i in range(8)]
    data = encode_shard(demos, 0)
    (folder / "shard-00000.parquet").write_bytes(data)
    manifest = build_manifest("tabletop", "test", [("shard-00000.parquet", data)])
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return folder


def job(dataset, scratch, **changes):
    fields = {"init": "scratch", "steps": 4, "batch": 8, **changes}
    run = Run("tiny-paligemma-1", "tabletop", **fields).resolved(ROW.recipe)
    return TrainJob(run, ROW, dataset, scratch, log_every=1)


def test_two_steps_stop_resume_to_four_equals_four(dataset, tmp_path):
    whole, cut = FolderSink(tmp_path / "whole"), FolderSink(tmp_path / "cut", stop=2)
    train(job(dataset, tmp_path / "a"), whole)
    with pytest.raises(Stopped):
        train(job(dataset, tmp_path / "b"), cut)
    assert cut.latest()[0] == 2
    cut.stop = None
    train(job(dataset, tmp_path / "c"), cut)
    assert [step for step, _ in cut.metrics] == [1, 2, 3, 4]
    first, second = whole.weights(4), cut.weights(4)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], whole.weights(2)[name]) for name in first)


def test_micro_batches_accumulate_to_the_same_update(dataset, tmp_path):
    losses = []
    for micro in (None, 4):
        sink = FolderSink(tmp_path / str(micro))
        plan = job(dataset, tmp_path / f"s{micro}")
        train(replace(plan, engine=Engine(micro_batch=micro)), sink)
        losses.append([metrics["loss"] for _, metrics in sink.metrics])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_trained_policy_loads_and_acts(dataset, tmp_path):
    sink = FolderSink(tmp_path / "run")
    train(job(dataset, tmp_path / "s"), sink)
    policy = load_policy(tmp_path / "run" / "step-00000004")
    seen = tabletop.Tabletop(ROW).reset("reach", 0)
    assert policy.act([seen]).shape == (1, ROW.chunk, 7)
    assert policy.normaliser is not None
    stored = sink.weights(4)
    assert stored.keys() == policy.state_dict().keys()


def test_a_loss_that_is_not_finite_names_step_and_samples(dataset, tmp_path):
    with pytest.raises(TrainingDivergedError, match=r"at step [1-3] .*samples \[\d+"):
        train(job(dataset, tmp_path / "s", lr=1e30), FolderSink(tmp_path / "run"))


def test_a_batch_that_workers_cannot_share_is_refused():
    with pytest.raises(ValueError, match="64 does not divide among 5 workers"):
        deepspeed_config(Engine(), batch=64, workers=5)
    config = deepspeed_config(Engine(zero=2, precision="bf16", micro_batch=4), 64, 4)
    assert config["gradient_accumulation_steps"] == 4
