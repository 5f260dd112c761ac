"""The training loop without Ray: one process, a folder for a store."""

import shutil
from dataclasses import replace

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from safetensors.torch import load_file

from envs import tabletop
from envs.benchmarks import benchmark
from envs.experts.tabletop import demonstrate
from vlm4vla import figures
from vlm4vla.data.dataset import build_manifest, encode_shard
from vlm4vla.engine import DTYPES, Engine, accumulation
from vlm4vla.export import load_policy
from vlm4vla.policy_job import TrainJob
from vlm4vla.run import Run
from vlm4vla.train import TrainingDivergedError, train

ROW = benchmark("tabletop")
ROW = replace(ROW, recipe=replace(ROW.recipe, checkpoints=(2, 4), warmup=1))


class Stopped(Exception):
    pass


class FolderSink:
    """Keeps checkpoints in a folder; stops the run after `stop` if asked to."""

    def __init__(self, folder, stop=None, noticed_at=None):
        self.folder, self.stop, self.noticed_at = folder, stop, noticed_at
        self.rows, self.parts, self.reported = [], [], []

    def candidates(self):
        done = self.folder.glob("step-*/complete")
        return sorted((int(path.parent.name[5:]) for path in done), reverse=True)

    def fetch(self, step, state):
        return self.folder / f"step-{step:08d}"

    def publish(self, part):
        shutil.copytree(part.folder, self.folder / f"step-{part.step:08d}", dirs_exist_ok=True)

    def commit(self, part):
        self.parts.append(part)
        (self.folder / f"step-{part.step:08d}" / "complete").touch()
        if part.step == self.stop:
            raise Stopped

    def report(self, rows):
        self.rows += rows
        self.reported.append(rows[-1]["step"])

    def notice(self):
        return bool(self.rows) and self.rows[-1]["step"] + 1 == self.noticed_at

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
    assert cut.candidates() == [2]
    cut.stop = None
    train(job(dataset, tmp_path / "c"), cut)
    steps = [row["step"] for row in cut.rows]
    assert steps in ([1, 2, 3, 4], [1, 2, 3, 3, 4], [1, 2, 3, 4, 3, 4])  # it runs on while saving
    first, second = whole.weights(4), cut.weights(4)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], whole.weights(2)[name]) for name in first)


def test_the_figures_of_a_checkpoints_steps_are_reported_before_it(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "EVERY_S", 1e9)  # never due by themselves
    sink = FolderSink(tmp_path / "sink")
    train(replace(job(dataset, tmp_path / "scratch"), log_every=100), sink)
    assert [part.step for part in sink.parts] == [2, 4]
    assert {2, 4} <= set(sink.reported)
    assert [row["step"] for row in sink.rows] == [1, 2, 3, 4]


def test_micro_batches_accumulate_to_the_same_update(dataset, tmp_path):
    losses = []
    for micro in (None, 4):
        sink = FolderSink(tmp_path / str(micro))
        plan = job(dataset, tmp_path / f"s{micro}")
        train(replace(plan, engine=Engine(micro_batch=micro)), sink)
        losses.append([row["loss"] for row in sink.rows])
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
    with pytest.raises(ValueError, match="4 cannot be split among 5 workers"):
        accumulation(Engine(), batch=4, workers=5)
    assert accumulation(Engine(micro_batch=4), 64, 4) == (4, 4)
    assert accumulation(Engine(micro_batch=4), 64, 5) == (4, 4)  # shares of 12 and 13
    assert accumulation(Engine(), 64, 5) == (1, 13)


def test_figures_of_every_step(dataset, tmp_path):
    sink = FolderSink(tmp_path / "run")
    train(job(dataset, tmp_path / "s"), sink)
    assert [row["step"] for row in sink.rows] == [1, 2, 3, 4]
    for row in sink.rows:
        assert {"loss", "gripper_accuracy", "grad_norm", "lr", "checkpoint_s"} <= row.keys()
        assert row["samples_per_s"] * row["step_s"] == pytest.approx(8)
        assert row["tokens_per_s"] > 16 * row["samples_per_s"]  # 16 image tokens and a prompt
        assert 0 <= row["data_wait_s"] <= row["step_s"]
        assert row["grad_norm"] > 0
        errors = [row[f"error_{axis}"] for axis in ("x", "y", "z", "roll", "pitch", "yaw")]
        assert all(0 <= error < 2 for error in errors)
        assert row["error_x"] > row["error_roll"]  # these demonstrations never turn
    assert sink.rows[0]["lr"] == ROW.recipe.lr


def test_a_notice_saves_a_checkpoint_at_once_that_is_not_evaluated(dataset, tmp_path):
    sink = FolderSink(tmp_path / "run", noticed_at=3)
    train(job(dataset, tmp_path / "s"), sink)
    assert [part.step for part in sink.parts] == [2, 3, 4]
    assert [part.evaluated for part in sink.parts] == [True, False, True]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_sixteen_bits_stop_and_resume_to_the_same_weights(
    dataset, tmp_path, zero, precision, monkeypatch
):
    # DeepSpeed refuses fp16 on processors without fast kernels for it; slow ones do here.
    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda _: True)
    engine = Engine(zero=zero, precision=precision, micro_batch=4)
    whole, cut = FolderSink(tmp_path / "whole"), FolderSink(tmp_path / "cut", stop=2)
    train(replace(job(dataset, tmp_path / "a"), engine=engine), whole)
    with pytest.raises(Stopped):
        train(replace(job(dataset, tmp_path / "b"), engine=engine), cut)
    cut.stop = None
    train(replace(job(dataset, tmp_path / "c"), engine=engine), cut)
    first, second = whole.weights(4), cut.weights(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {t.dtype for t in first.values()} == {DTYPES[precision]}


def test_an_engine_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="precision: 'fp8' is not one of fp32, bf16, fp16"):
        Engine(precision="fp8")
    with pytest.raises(ValueError, match="'offload' needs ZeRO stage 1, 2 or 3"):
        Engine(optimiser="offload")
