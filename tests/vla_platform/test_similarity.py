"""Similarities in the store: measured once, for each checkpoint and each model it is beside."""

import io
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vla_platform import artifacts, similarity, training
from vla_platform.cluster import CLUSTERS
from vla_platform.demos import Demonstrations, collect
from vla_platform.store import open_store

from envs.benchmarks import benchmark
from vlm4vla import science
from vlm4vla.run import Run
from vlm4vla.similarity import compare

ROW, CLUSTER = benchmark("tabletop"), CLUSTERS["laptop"]


def never(*_):
    raise AssertionError("everything is in the store")


@pytest.mark.full
def test_a_policy_begins_as_its_vlm_and_leaves_it(ray_cluster, tmp_path):
    store = open_store(str(tmp_path))
    wanted = Demonstrations((("reach", 4),), ROW.demonstrations_from)
    encode, finish = science.encode_shard, science.build_manifest
    collect(store, "few", ROW, wanted, encode, finish, lambda *_: None)
    run = Run("tiny-paligemma-1", "tabletop", dataset="few", steps=8, batch=16, lr=2e-3)
    job = partial(science.make_job, run, ROW, science.Engine(**CLUSTER.engine()), True)
    task = training.Task(run.id(ROW), run.backbone, 8, "few", job)
    training.fit(science.train, [task], store, CLUSTER)
    assert similarity.runs(store) == [task.id]
    found = similarity.ensure(store, CLUSTER, compare, task.id, 32)
    assert {row["step"] for row in found} == {0, 8} and {row["reference"] for row in found} == {
        "vlm"
    }
    begin, end = ([r["similarity"] for r in found if r["step"] == step] for step in (0, 8))
    assert begin == pytest.approx([1] * len(begin), abs=1e-6)
    assert all(value < 1 - 1e-6 for value in end) and {row["part"] for row in found} == {
        "vision",
        "language",
    }
    assert all(row["floor"] < 0.999 for row in found)
    assert similarity.ensure(store, CLUSTER, never, task.id, 32) == found
    fewer = similarity.ensure(store, CLUSTER, compare, task.id, 16)
    assert {row["frames"] for row in fewer} == {16} and len(fewer) == len(found)


def test_other_frames_are_measured_again(tmp_path, monkeypatch):
    store, asked = open_store(str(tmp_path)), []
    description = b'{"run": {"backbone": "tiny-paligemma-1", "dataset": "few"}}'
    for step in (0, 8):
        artifacts.complete_policy(store, "run", step, f"{step:064d}")
        store.put(f"policies/run/step-{step:08d}/{artifacts.DESCRIPTION}", description)

    def measure(store, compare, found, dataset, left, frames):
        asked.append((list(left), frames))
        for checkpoint in found:
            sink, row = io.BytesIO(), {"part": "vision", "layer": 1, "frames": frames}
            pq.write_table(pa.Table.from_pylist([row]), sink)
            store.put(similarity._key("run", similarity.VLM, checkpoint.step), sink.getvalue())

    def here(**_):  # in this process instead of a Ray task's
        return lambda task: type("Task", (), {"remote": staticmethod(measure)})

    monkeypatch.setattr(similarity.ray, "remote", here)
    monkeypatch.setattr(similarity.ray, "get", lambda found: found)
    for frames in (256, 256, 512):
        rows = similarity.ensure(store, CLUSTER, never, "run", frames)
        assert {row["frames"] for row in rows} == {frames} and len(rows) == 2
    assert asked == [(["vlm"], 256), (["vlm"], 512)]


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint of a run 'nobody'"):
        similarity.ensure(open_store(str(tmp_path)), CLUSTER, never, "nobody", 32)
