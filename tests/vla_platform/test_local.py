"""Copies of datasets on a node: fetched once, limited by room, fetched again where needed."""

import json
import os

import pytest
from vla_platform import places
from vla_platform.local import LocalDataset, trim
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
    with pytest.raises(KeyError, match=r"dataset gone is not complete"):
        LocalDataset.of(store, "gone")


def test_a_whole_dataset_pushes_others_out_but_not_itself(store, monkeypatch):
    publish(store, "old", 2).everything()
    monkeypatch.setenv("VLA_CACHE_GB", "3e-6")
    folder = publish(store, "new", 4).everything()
    assert len(list(folder.glob("*.parquet"))) == len(held()) == 4


def test_trimming_spares_what_is_being_made(tmp_path):
    for name in ("a.lock", "b.part", "manifest.json", "c.arrow", "d.npy"):
        (tmp_path / name).write_bytes(bytes(10))
    trim(tmp_path, 5, {tmp_path / "d.npy"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.lock",
        "b.part",
        "d.npy",
        "manifest.json",
    ]


def test_the_limit_is_half_the_disk_unless_told(store, monkeypatch):
    assert places.cache_limit() > 1e9
    monkeypatch.setenv("VLA_CACHE_GB", "0.5")
    assert places.cache_limit() == 500_000_000
