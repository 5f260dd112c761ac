"""Checkpoints on their way there, also two of one step, and back: one copy for a node's workers."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from vla_platform import artifacts, places, prune, similarity
from vla_platform.candidates import policy_files
from vla_platform.store_folder import FolderStore
from vla_platform.store_sink import StoreSink

RUN, STEP, ATTEMPT = "run", 4, "a"
FILES = [f"zero2-rank-{rank:05d}-of-00004.safetensors" for rank in range(4)]


@dataclass(frozen=True)
class Counted(FolderStore):
    """Remembers what was downloaded."""

    downloads: list = field(default_factory=list)

    def download(self, key, path):
        self.downloads.append(key.rpartition("/")[2])
        super().download(key, path)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with a checkpoint of four workers, its weights where all attempts put them once."""
    monkeypatch.setenv("VLA_CACHE", str(tmp_path / "cache"))
    made = Counted(str(tmp_path / "store"))
    state = {name: name.encode() * 50 for name in FILES}
    for name, data in state.items():
        made.put(f"{artifacts.state_prefix(RUN, STEP, ATTEMPT)}/{name}", data)
    made.put(f"{artifacts.checkpoint_prefix(RUN, STEP)}/{artifacts.WEIGHTS}", b"w" * 2000)
    parts = {name: sha(data) for name, data in state.items()}
    made.put(f"{artifacts.checkpoint_prefix(RUN, STEP)}/{artifacts.DESCRIPTION}", b"{}")
    artifacts.complete_policy(made, RUN, STEP, sha(b"w" * 2000), attempt=ATTEMPT, state=parts)
    return made


def sha(data):
    return hashlib.sha256(data).hexdigest()


def fetch(store, tmp_path, states):
    """What workers with scratch folders of their own fetch at the same time."""
    sinks = [
        StoreSink(store, RUN, tmp_path / f"worker-{n}", lambda row: None, lambda: False)
        for n, _ in enumerate(states)
    ]
    with ThreadPoolExecutor(len(states)) as pool:
        return set(pool.map(lambda sink, state: sink.fetch(STEP, state), sinks, states))


def test_the_workers_of_a_node_share_one_copy_of_what_each_of_them_needs(store, tmp_path):
    (folder,) = fetch(store, tmp_path, FILES[:2])
    assert sorted(store.downloads) == [artifacts.WEIGHTS, *FILES[:2]]
    assert fetch(store, tmp_path, ["zero2-rank-00000-of-00003.safetensors"] * 3) == {folder}
    assert sorted(store.downloads) == [artifacts.WEIGHTS, *FILES]
    assert folder.is_relative_to(places.cache())
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        artifacts.WEIGHTS,
        *FILES,
    ]
    assert not list(tmp_path.glob("worker-*/resume*"))


def test_an_old_copy_is_checked_again_and_replaced_if_it_is_damaged(store, tmp_path):
    (folder,) = fetch(store, tmp_path, FILES[:1])
    for path in folder.glob("*.safetensors"):
        os.utime(path, (1, 1))
    (folder / FILES[0]).write_bytes(b"damaged")
    os.utime(folder / FILES[0], (1, 1))
    fetch(store, tmp_path, FILES[:1])
    assert store.downloads == [FILES[0], artifacts.WEIGHTS, FILES[0]]
    assert (folder / FILES[0]).read_bytes() == FILES[0].encode() * 50
    assert places.recent(folder / artifacts.WEIGHTS)


def test_a_damaged_file_of_the_store_leaves_no_copy(store, tmp_path):
    store.put(f"{artifacts.state_prefix(RUN, STEP, ATTEMPT)}/{FILES[1]}", b"damaged")
    with pytest.raises(ValueError, match=f"{FILES[1]} is damaged"):
        fetch(store, tmp_path, FILES[1:2])
    assert not [path for path in places.cache().rglob("*zero2*") if path.suffix != ".lock"]


def test_a_copy_that_nobody_resumes_from_makes_room(store, tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_CACHE_GB", "1e-6")
    (folder,) = fetch(store, tmp_path, FILES[:1])
    places.trim()
    assert (folder / artifacts.WEIGHTS).exists()
    os.utime(folder / artifacts.WEIGHTS, (1, 1))
    places.trim()
    assert not (folder / artifacts.WEIGHTS).exists()


def test_a_marker_leads_no_copy_out_of_its_folder(store, tmp_path):
    parts = {"../../../evil": sha(b"")}
    artifacts.complete_policy(store, RUN, STEP, "0" * 64, attempt=ATTEMPT, state=parts)
    with pytest.raises(ValueError, match="not allowed"):
        fetch(store, tmp_path, FILES[:1])
    assert not list(tmp_path.rglob("*evil*"))


def attempt(store, tmp_path, name):
    """An attempt's sink, and its part of step 8: on GPUs no two have the same weights."""
    folder = tmp_path / name / "step"
    folder.mkdir(parents=True)
    (folder / artifacts.WEIGHTS).write_bytes(name.encode() * 100)
    (folder / artifacts.DESCRIPTION).write_text(f'{{"by": "{name}"}}')
    (folder / "zero0.safetensors").write_bytes(name.encode())
    sink = StoreSink(store, RUN, tmp_path / name, lambda row: None, lambda: False)
    return sink, SimpleNamespace(
        step=8,
        folder=folder,
        rank=0,
        state="zero0.safetensors",
        attempt=name,
        parts=1,
        evaluated=True,
    )


def test_of_two_trainings_at_one_checkpoint_neither_replaces_the_others_files(store, tmp_path):
    first, second = (attempt(store, tmp_path, name) for name in ("one", "two"))
    first[0].publish(first[1])
    second[0].publish(second[1])
    for (sink, part), name in ((first, "one"), (second, "two"), (first, "one")):
        sink.commit(part)
        found = artifacts.checkpoints(store, RUN)[-1]
        assert found.digest == sha(name.encode() * 100)
        folder = artifacts.fetch_policy(store, found)
        assert (folder / artifacts.DESCRIPTION).read_text() == f'{{"by": "{name}"}}'
        assert sink.fetch(8, part.state).joinpath(artifacts.WEIGHTS).exists()
        weights, _ = policy_files(f"{RUN}@8", store)
        assert weights.read_bytes() == name.encode() * 100
    prune.delete(store, prune.surplus(store, RUN))
    left = {key.split("/")[3] for key in store.list(f"policies/{RUN}/step-00000008/")}
    assert left == {"one", artifacts.COMPLETE}
    assert {key.split("/")[3] for key in store.list(f"training/{RUN}/step-00000008/")} == {"one"}
    assert policy_files(f"{RUN}@4", store)[0].read_bytes() == b"w" * 2000


def test_two_attempts_at_one_checkpoint_are_one_policy_to_compare(tmp_path):
    store = FolderStore(str(tmp_path / "store"))
    for name in ("one", "two"):
        sink, part = attempt(store, tmp_path, name)
        sink.publish(part)
        sink.commit(part)
    assert similarity.runs(store) == []
