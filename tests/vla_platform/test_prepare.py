"""Preparing over a cluster: resumed by shard, and nothing visible that is not whole."""

import errno
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.exceptions import TaskCancelledError
from vla_platform.prepare import make_shard, prepare, results
from vla_platform.store import open_store

MANIFEST = "datasets/toy/manifest.json"


@dataclass(frozen=True)
class Joined:
    """A manifest that only joins the notes."""

    notes: tuple[bytes, ...]

    def to_bytes(self):
        return b",".join(self.notes)


@dataclass(frozen=True)
class Toy:
    """Three shards; each making of one leaves a file, and `bad` names those that fail."""

    folder: Path
    bad: tuple[int, ...] = ()
    id: str = "toy"
    shards: int = 3

    def shard(self, number):
        if number in self.bad:
            self.wait_for_the_others()
            raise ValueError(f"/data/file-{number}: row 7: no such frame")
        (self.folder / f"{number}-{os.urandom(4).hex()}").touch()
        return (b"" if number == 2 else b"rows %d" % number), b"note %d" % number

    def manifest(self, notes):
        return Joined(tuple(notes))

    def wait_for_the_others(self):
        until = time.monotonic() + 60
        others = self.shards - len(self.bad)
        while len(list(self.folder.parent.rglob("*.note"))) < others and time.monotonic() < until:
            time.sleep(0.05)

    def made(self):
        return sorted(path.name[0] for path in self.folder.iterdir())


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "made").mkdir()
    return Toy(tmp_path / "made")


@pytest.fixture
def folder_store(tmp_path):
    return open_store(str(tmp_path / "store"))


def test_shards_then_manifest(ray_cluster, folder_store, toy):
    seen = []
    manifest = prepare(folder_store, toy, lambda done, total: seen.append((done, total)))
    assert manifest.notes == (b"note 0", b"note 1", b"note 2")
    assert list(folder_store.list("datasets/")) == [
        MANIFEST,
        "datasets/toy/shard-00000.parquet",
        "datasets/toy/shard-00001.parquet",
    ]
    assert folder_store.get(MANIFEST) == b"note 0,note 1,note 2"
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_bad_shard_ends_it_and_the_rest_is_not_made_again(ray_cluster, folder_store, toy):
    broken = Toy(toy.folder, bad=(1,))
    with pytest.raises(ValueError, match=r"file-1: row 7: no such frame") as caught:
        prepare(folder_store, broken, lambda *_: None)
    assert type(caught.value) is ValueError
    assert not folder_store.exists(MANIFEST)
    assert toy.made() == ["0", "2"]
    prepare(folder_store, toy, lambda *_: None)
    assert toy.made() == ["0", "1", "2"]


def failing(number, folder):
    """The first fails while the second is at work; the third waits for a core."""
    (folder / str(number)).touch()
    time.sleep(0 if number == 0 else 2)
    if number == 0:
        raise ValueError("no such frame")


def test_tasks_that_wait_are_called_off_when_one_fails(ray_cluster, tmp_path):
    task = ray.remote(num_cpus=2, max_retries=0)(failing)
    flying = [task.remote(number, tmp_path) for number in range(6)]
    with pytest.raises(ValueError, match="no such frame") as caught:
        list(results(flying))
    assert type(caught.value) is ValueError
    with pytest.raises(TaskCancelledError):
        ray.get(flying[-1])


class FullStore:
    """A store on a disk that fills up after `left` writes."""

    def __init__(self, inner, left):
        self.inner, self.left = inner, left

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def put(self, key, data):
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device", key)
        self.left -= 1
        self.inner.put(key, data)


def test_a_full_disk_leaves_a_shard_to_be_made_again(folder_store, toy):
    with pytest.raises(OSError, match="No space left"):
        make_shard(FullStore(folder_store, 1), "toy", toy, 0)
    assert not folder_store.exists(MANIFEST)
    make_shard(folder_store, "toy", toy, 0)
    assert toy.made() == ["0", "0"]
    assert json.dumps(list(folder_store.list("preparing/"))) == '["preparing/toy/shard-00000.note"]'
