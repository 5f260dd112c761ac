"""Ray Train around the real loop: a worker that dies resumes from the last complete checkpoint."""

import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray
import torch.distributed as dist
from vla_platform import artifacts, curves, places, training
from vla_platform.cluster import CLUSTERS
from vla_platform.demos import Demonstrations, collect
from vla_platform.store import open_store

from envs import tabletop
from envs.benchmarks import benchmark
from vlm4vla.data.dataset import build_manifest, encode_shard
from vlm4vla.engine import Engine
from vlm4vla.policy_job import make_job
from vlm4vla.run import Run
from vlm4vla.train import train

ROW = benchmark("tabletop")
ROW = replace(ROW, recipe=replace(ROW.recipe, checkpoints=(2, 4), warmup=1))


def dying_train(marker: Path, job, sink):
    """The real loop, but the first rank 0 to have committed step 2 is killed."""
    commit = sink.commit

    def commit_and_die(part):
        commit(part)
        if part.step == 2 and not marker.exists():
            marker.touch()
            os._exit(9)

    sink.commit = commit_and_die
    train(job, sink)


def terminated_train(marker: Path, job, sink):
    """The real loop, but after step 1 worker 1 is told that its machine is taken away."""
    training.ASK_EVERY = 1  # so that so short a training asks Ray too
    notice, asked = sink.notice, []

    def notice_after_sigterm():
        if dist.get_rank() == 1 and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
            deadline = time.monotonic() + 20
            while not sink.noticed._asked.is_set() and time.monotonic() < deadline:
                time.sleep(0.01)  # the main thread has yet to come to its handler
        return notice()

    sink.notice = notice_after_sigterm
    train(job, sink)
    marker.touch()


def broken_train(calls: Path, job, sink):
    """An error that another attempt would meet again."""
    with calls.open("a") as file:
        file.write("called\n")
    raise ValueError("the loop's own words")


@pytest.fixture(scope="module")
def store(tmp_path_factory, ray_cluster):
    store = open_store(str(tmp_path_factory.mktemp("training") / "store"))
    wanted = Demonstrations((("reach", 6),), tabletop.DEMONSTRATIONS_FROM)
    shown = []
    manifest = collect(
        store, "toy", ROW, wanted, encode_shard, build_manifest, lambda *n: shown.append(n)
    )
    assert shown[-1] == (6, manifest.episodes, 6)
    files = [key.rpartition("/")[2] for key in store.list("datasets/toy/")]
    assert files == ["manifest.json", *(shard.name for shard in manifest.shards)]
    return store


def task(name):
    run = Run("tiny-paligemma-1", "tabletop", init="scratch", steps=4, batch=8, seed=1)
    job = partial(make_job, run.resolved(ROW.recipe), ROW, Engine(), True)
    return training.Task(name, "test", 4, "toy", job)


def fit(store, name, loop):
    training.fit(loop, [task(name)], store, CLUSTERS["laptop"])
    return artifacts.checkpoints(store, name)


@pytest.fixture(scope="module")
def undisturbed(store):
    return fit(store, "undisturbed", train)


def digests(found):
    return {checkpoint.step: checkpoint.digest for checkpoint in found}


def test_a_run_keeps_checkpoints_and_the_figures_of_every_step(store, undisturbed):
    assert [c.step for c in undisturbed] == [0, 2, 4]
    assert all(c.evaluated for c in undisturbed)
    assert len(set(digests(undisturbed).values())) == 3
    rows = curves.read(store, "undisturbed")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"loss", "grad_norm", "lr", "samples_per_s", "data_wait_s"} <= rows[0].keys()
    (events,) = store.list("tensorboard/undisturbed/")
    store.download(events, Path(places.cache()) / "events")
    assert b"train/loss" in (Path(places.cache()) / "events").read_bytes()


@pytest.mark.full
def test_a_killed_worker_resumes_and_it_and_the_run_after_it_end_with_the_same_weights(
    store, undisturbed, tmp_path
):
    marker = tmp_path / "died"
    loop = partial(dying_train, marker)
    training.fit(loop, [task("disturbed"), task("after")], store, CLUSTERS["laptop"])
    assert marker.exists()
    for name in ("disturbed", "after"):
        assert digests(artifacts.checkpoints(store, name)) == digests(undisturbed)


@pytest.mark.full
def test_a_sigterm_saves_a_checkpoint_at_once_and_changes_nothing_else(
    store, undisturbed, tmp_path
):
    found = fit(store, "terminated", partial(terminated_train, tmp_path / "ended"))
    extra = [c for c in found if not c.evaluated]
    assert [c.step for c in extra] == [1]
    kept = {c.step: c.digest for c in found if c.evaluated}
    assert kept == digests(undisturbed)
    assert (tmp_path / "ended").exists()  # in the first attempt: nobody was killed


def test_an_error_of_the_loop_is_raised_at_once_and_not_repeated(store, tmp_path):
    with pytest.raises(ValueError, match="the loop's own words") as raised:
        fit(store, "broken", partial(broken_train, tmp_path / "calls"))
    told = training.trace(raised.value)
    assert "in broken_train" in told and told.strip().endswith("ValueError: the loop's own words")
    assert (tmp_path / "calls").read_text().count("called") <= 2  # once per worker
    assert artifacts.checkpoints(store, "broken") == []


def killed_mid_step(marker: Path, job, sink):
    """The real loop, but worker 1 dies while the others wait for it in a reduction."""
    notice, asked = sink.notice, []

    def die_at_the_third():
        asked.append(1)
        if dist.get_rank() == 1 and len(asked) == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return notice()

    sink.notice = die_at_the_third
    train(replace(job, log_every=1), sink)


def stuck_mid_step(marker: Path, job, sink):
    """The real loop, but worker 1 never comes to the reduction."""
    notice, asked = sink.notice, []

    def hang_at_the_third():
        asked.append(1)
        if dist.get_rank() == 1 and len(asked) == 3 and not marker.exists():
            marker.touch()
            time.sleep(3600)
        return notice()

    sink.notice = hang_at_the_third
    train(replace(job, log_every=1, engine=Engine(stall_s=5)), sink)


@pytest.mark.full
def test_a_worker_killed_mid_step_is_replaced(store, undisturbed, tmp_path):
    marker = tmp_path / "killed"
    assert digests(fit(store, "mid-step", partial(killed_mid_step, marker))) == digests(undisturbed)
    assert marker.exists()


@pytest.mark.full
def test_a_stuck_step_is_ended_with_every_workers_stack_and_resumed(store, undisturbed, tmp_path):
    marker = tmp_path / "stuck"
    assert digests(fit(store, "stuck", partial(stuck_mid_step, marker))) == digests(undisturbed)
    assert marker.exists()
    logs = Path(ray.get_runtime_context().get_session_name())
    logs = next(Path("/tmp").glob(f"rt-*/{logs}/logs"))
    said = [path.read_text() for path in logs.glob("worker-*.err")]
    stacks = [text for text in said if "no progress for" in text]
    assert len(stacks) == 2  # one file per worker
    assert any("hang_at_the_third" in text for text in stacks)
    assert all("all_reduce" in t or "hang_at_the_third" in t for t in stacks)
