"""Copies of datasets and policies on a node: fetched once, limited by room, fetched again."""

import hashlib
import json
import multiprocessing
import os
import time

import pytest
from vla_platform import artifacts, places
from vla_platform.local import LocalDataset
from vla_platform.store import open_store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_HOME", str(tmp_path / "home"))
    return open_store(str(tmp_path / "store"))


def publish(store, name, shards):
    for number in range(shards):
        store.put(f"datasets/{name}/shard-{number:05d}.parquet", os.urandom(1000))
    store.put(f"datasets/{name}/manifest.json", json.dumps({"name": name}).encode())
    return LocalDataset.of(store, name)


def held():
    return sorted(path.name[6:11] for path in places.cache().rglob("*.parquet"))


def test_a_dataset_larger_than_the_limit_is_never_whole(store, monkeypatch):
    monkeypatch.setenv("VLA_CACHE_GB", "3e-6")
    data = publish(store, "large", 5)
    for number in range(5):
        data.fetch(f"shard-{number:05d}.parquet")
        os.utime(data.folder / f"shard-{number:05d}.parquet", (number + 1, number + 1))
        assert len(held()) <= 3
    assert held() == ["00002", "00003", "00004"]
    os.utime(data.folder / "shard-00002.parquet")  # used again
    data.fetch("shard-00000.parquet")
    assert held() == ["00000", "00002", "00004"]


def test_what_is_there_is_not_fetched_again(store):
    data = publish(store, "small", 2)
    data.everything()
    for key in list(store.list("datasets/small/shard")):
        store.delete(key)
    assert held() == ["00000", "00001"]
    data.fetch("shard-00001.parquet")
    with pytest.raises(ValueError, match=r"dataset gone is not complete"):
        LocalDataset.of(store, "gone")


def test_a_whole_dataset_pushes_others_out_but_not_itself(store, monkeypatch):
    publish(store, "old", 2).everything()
    monkeypatch.setenv("VLA_CACHE_GB", "3e-6")
    folder = publish(store, "new", 4).everything()
    assert len(list(folder.glob("*.parquet"))) == len(held()) == 4


def policy(store, name):
    """A complete policy whose weights are 2000 bytes."""
    weights = os.urandom(2000)
    store.put(f"policies/{name}/step-00000001/{artifacts.WEIGHTS}", weights)
    store.put(f"policies/{name}/step-00000001/{artifacts.DESCRIPTION}", b"{}")
    return artifacts.complete_policy(store, name, 1, hashlib.sha256(weights).hexdigest())


def there(folders):
    return [(folder / artifacts.WEIGHTS).exists() for folder in folders]


def test_policies_make_room_unless_they_were_just_asked_for(store, monkeypatch):
    monkeypatch.setenv("VLA_CACHE_GB", "3e-6")
    found = [policy(store, name) for name in ("a", "b")]
    folders = [artifacts.fetch_policy(store, each) for each in found]
    publish(store, "data", 2).everything()
    assert there(folders) == [True, True]
    for folder in folders:
        os.utime(folder / artifacts.WEIGHTS, (1, 1))
    artifacts.fetch_policy(store, found[0])  # used again
    assert there(folders) == [True, False]
    os.utime(folders[0] / artifacts.WEIGHTS, (1, 1))
    publish(store, "more", 3).everything()
    assert there(folders) == [False, False]
    artifacts.fetch_policy(store, found[1])
    assert there(folders) == [False, True]


def test_trimming_spares_what_is_being_made(store, monkeypatch):
    monkeypatch.setenv("VLA_CACHE_GB", "5e-9")
    folder = places.cache() / "datasets" / "d"
    folder.mkdir(parents=True)
    for name in (".lock", "a.lock", "b.part", "manifest.json", "c.arrow", "d.npy"):
        (folder / name).write_bytes(bytes(10))
    places.trim({folder / "d.npy"})
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "a.lock",
        "b.part",
        "d.npy",
        "manifest.json",
    ]


def test_what_a_killed_process_left_unfinished_goes(store):
    folder = places.cache() / "policies" / "d"
    folder.mkdir(parents=True)
    old, new = folder / ".old.safetensors.0.part", folder / ".new.safetensors.0.part"
    for path in (old, new):
        path.write_bytes(bytes(10))
    os.utime(old, (1, 1))
    places.trim()
    assert not old.exists() and new.exists()


def in_scratch(told):
    """A process that writes into its scratch folder, and then lives until it is killed."""
    with places.scratch() as folder:
        (folder / "optimiser").write_bytes(bytes(10))
        told.put(folder)
        time.sleep(600)


def test_the_scratch_of_dead_processes_goes_that_of_living_ones_stays(store):
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    living, dead = (spawn.Process(target=in_scratch, args=(told,)) for _ in range(2))
    try:
        living.start()
        stays = told.get(timeout=120)
        dead.start()
        goes = told.get(timeout=120)
        dead.kill()
        dead.join()
        assert goes.exists()
        with places.scratch() as mine:
            assert mine.is_relative_to(places.cache())
            assert not goes.exists() and (stays / "optimiser").exists()
            with places.scratch():
                assert mine.exists()
        assert not mine.exists()
    finally:
        living.kill()
        living.join()


def test_the_limit_is_half_the_disk_unless_told(store, monkeypatch):
    assert places.cache_limit() > 1e9
    monkeypatch.setenv("VLA_CACHE_GB", "0.5")
    assert places.cache_limit() == 500_000_000
