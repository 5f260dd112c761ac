"""Faults around a training's checkpoints, each followed by the weights of an undisturbed run.

One process, fp32 on the CPU, the real store: what a resume gives is bit-equal. Faults of a
whole worker group under Ray are in test_training.py and test_training_elastic.py.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from vla_platform import artifacts
from vla_platform.store import StoreError, StoreUnavailableError, open_store
from vla_platform.store_sink import StoreSink

from tests.seaweed import credentials, seaweed
from tests.vlm4vla.train_worker import ROW, make_dataset
from vlm4vla.policy_job import TrainJob
from vlm4vla.run import Run
from vlm4vla.train import train

ROOT = Path(__file__).resolve().parents[2]
RUN = "run"


class Killed(Exception):
    """Stands for the death of the process where the real one would take the test along."""


def fit(url, dataset, scratch, fault=lambda sink: None, patience=60.0):
    """One attempt in this process; `fault` may change the sink."""
    run = Run("tiny-paligemma-1", "tabletop", init="scratch", steps=6, batch=8)
    store = open_store(str(url), patience)
    sink = StoreSink(store, RUN, scratch, lambda row: None, lambda: False)
    fault(sink)
    job = TrainJob(run.resolved(ROW.recipe), ROW, dataset, scratch, log_every=1)
    try:
        train(job, sink)
    finally:
        sink.curves.close()
    return digests(store)


def digests(store):
    return {c.step: c.digest for c in artifacts.checkpoints(store, RUN)}


def die_after_state(sink):
    """The process is gone once step 4's optimiser state, but not its policy, is stored."""

    def upload(store, run, step, *where, real=artifacts.publish_policy):
        if step == 4:
            os._exit(9)
        real(store, run, step, *where)

    artifacts.publish_policy = upload


def child(url, dataset, scratch):
    fit(url, Path(dataset), Path(scratch), die_after_state)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    found = fit(folder / "store", dataset, folder / "scratch")
    assert list(found) == [2, 4, 6]
    return found


def test_a_kill_during_a_checkpoint_leaves_it_invisible(dataset, undisturbed, tmp_path):
    url = tmp_path / "store"
    code = f"from tests.vla_platform.test_training_faults import child; child({str(url)!r},"
    code += f" {str(dataset)!r}, {str(tmp_path / 'a')!r})"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment())
    assert ended.returncode == 9
    assert list(open_store(str(url)).list(f"training/{RUN}/step-00000004/"))
    assert list(digests(open_store(str(url)))) == [2]
    assert fit(url, dataset, tmp_path / "b") == undisturbed


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    return {**os.environ, "PYTHONPATH": path, "LOCAL_RANK": "0"}


def killed_after(step):
    def fault(sink):
        def commit(part, real=sink.commit):
            real(part)
            if part.step == step:
                raise Killed

        sink.commit = commit

    return fault


@pytest.mark.parametrize("what", ["training", "policies"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    dataset, undisturbed, tmp_path, caplog, what
):
    url = tmp_path / "store"
    with pytest.raises(Killed):
        fit(url, dataset, tmp_path / "a", killed_after(4))
    store = open_store(str(url))
    (key,) = (k for k in store.list(f"{what}/{RUN}/step-00000004/") if k.endswith(".safetensors"))
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    with caplog.at_level(logging.ERROR):
        assert fit(url, dataset, tmp_path / "b") == undisturbed
    assert "checkpoint of step 4 cannot be used" in caplog.text
    assert f"{key} is damaged" in caplog.text
    assert "step 2 cannot be used" not in caplog.text


def test_a_missing_file_of_a_checkpoint_makes_it_no_candidate(dataset, undisturbed, tmp_path):
    url = tmp_path / "store"
    with pytest.raises(Killed):
        fit(url, dataset, tmp_path / "a", killed_after(4))
    store = open_store(str(url))
    for key in list(store.list(f"training/{RUN}/step-00000004/")):
        store.delete(key)
    assert fit(url, dataset, tmp_path / "b") == undisturbed


def test_a_full_disk_is_said_once_and_a_larger_one_goes_on(dataset, undisturbed, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount(small, "4M")  # a checkpoint takes 4.1 MB
    try:
        with pytest.raises(StoreError, match="disk is full"):
            fit(small / "store", dataset, tmp_path / "a")
        assert digests(open_store(str(small / "store"))) == {}
        mount(small, "64M", "remount,")
        assert fit(small / "store", dataset, tmp_path / "b") == undisturbed
    finally:
        subprocess.run(["umount", str(small)], check=True)


def mount(folder, size, options=""):
    command = ["mount", "-t", "tmpfs", "-o", f"{options}size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")


@pytest.fixture
def own_seaweed(tmp_path, monkeypatch):
    for name, value in credentials().items():
        monkeypatch.setenv(name, value)
    with seaweed(tmp_path / "seaweed") as server:
        yield server


def down_at(step, server, seconds):
    """The store is killed when step's checkpoint sets out, and comes back after a while."""

    def fault(sink):
        def publish(part, real=sink.publish):
            if part.step == step:
                server.kill()
                threading.Thread(target=lambda: (time.sleep(seconds), server.start())).start()
            real(part)

        sink.publish = publish

    return fault


def test_a_store_that_is_down_during_a_checkpoint_is_waited_for(
    dataset, undisturbed, tmp_path, own_seaweed
):
    url = own_seaweed.url("down")
    fault = down_at(2, own_seaweed, 3)
    assert fit(url, dataset, tmp_path / "a", fault) == undisturbed


def test_a_store_that_stays_down_ends_the_attempt_and_the_next_goes_on(
    dataset, undisturbed, tmp_path, own_seaweed
):
    url = own_seaweed.url("gone")
    with pytest.raises(StoreUnavailableError):
        fit(url, dataset, tmp_path / "a", down_at(4, own_seaweed, 8), patience=2.0)
    time.sleep(10)
    assert fit(url, dataset, tmp_path / "b") == undisturbed
