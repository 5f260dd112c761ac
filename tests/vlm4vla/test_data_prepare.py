"""Published data to prepared shards, without Ray; layouts as in `published.py`."""

import hashlib
import pickle

import h5py
import numpy as np
import pytest
import torch

from envs.benchmarks import benchmark
from envs.resize import resize
from tests.vlm4vla import published
from vlm4vla.batches import Batches
from vlm4vla.data.dataset import Dataset, Manifest
from vlm4vla.data.normalise import Normaliser, Statistics
from vlm4vla.data.prepare import Options, Preparation, open_source, shard_name
from vlm4vla.data.prepared import Prepared
from vlm4vla.data.source import BadEpisodeError
from vlm4vla.run import Run

LENGTHS = [3, 5, 4, 6, 2]


def preparation(path, **options):
    settings = {"px": 16, "per_shard": 2, **options}
    return Preparation(open_source("libero", [path]), "toy", "libero: toy", **settings)


def written(work, folder):
    """The dataset that a cluster would have made."""
    folder.mkdir()
    notes = []
    for number in range(work.shards):
        data, note = work.shard(number)
        notes.append(note)
        if data:
            (folder / shard_name(number)).write_bytes(data)
    (folder / "manifest.json").write_bytes(work.manifest(notes).to_bytes())
    return Dataset(folder, work.px, lambda images: images)


@pytest.fixture
def demos(tmp_path):
    path = tmp_path / "bowl_demo.hdf5"
    return path, published.libero(path, LENGTHS)


def spoil(path, number):
    with h5py.File(path, "a") as file:
        file[f"data/demo_{number}/actions"][1, 2] = np.nan


def test_a_dataset_holds_what_was_published(demos, tmp_path):
    path, made = demos
    data = written(preparation(path), tmp_path / "set")
    actions = np.concatenate([moves for _, moves in made]).astype(np.float32)
    assert np.array_equal(data.images, np.concatenate([f[:, ::-1, ::-1] for f, _ in made]))
    assert np.array_equal(data.actions, actions)
    manifest = data.manifest
    assert (manifest.episodes, manifest.frames, len(manifest.shards)) == (5, 20, 3)
    assert manifest.statistics == Statistics.of(actions)
    assert manifest.source.startswith("libero: toy (listing ")
    assert data.last.tolist() == np.repeat(np.cumsum(LENGTHS) - 1, LENGTHS).tolist()


def test_frames_are_scaled_as_the_simulators_scale_theirs(demos, tmp_path):
    path, made = demos
    data = written(preparation(path, px=12), tmp_path / "set")
    assert np.array_equal(data.images[0], resize(made[0][0][0][::-1, ::-1], 12))


def test_jpeg_is_close_and_says_so(demos, tmp_path):
    path, made = demos
    data = written(preparation(path, image="jpeg"), tmp_path / "set")
    assert data.manifest.image == "jpeg"
    # Brightness is kept; colours, which these tiny frames change at every pixel, at half size.
    frame, wanted = data.images[0].mean(axis=-1), made[0][0][0][::-1, ::-1].mean(axis=-1)
    assert np.abs(frame - wanted).mean() < 3


def test_rotation_and_gripper_fit_the_benchmark(demos, tmp_path):
    path, made = demos
    data = written(preparation(path, rotate=True, gripper="negated"), tmp_path / "set")
    assert np.array_equal(data.images[:3], made[0][0])
    assert np.array_equal(data.actions[:3, 6], -made[0][1][:, 6].astype(np.float32))


def test_ids_follow_what_is_read_not_where_it_lies(demos, tmp_path):
    path, _ = demos
    moved = tmp_path / "elsewhere" / "other_demo.hdf5"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    assert preparation(moved).id == preparation(path).id
    changed = [preparation(path, **{k: v}).id for k, v in {"px": 8, "image": "jpeg"}.items()]
    no_noops = open_source("libero", [path], Options(no_noops=True))
    filtered = Preparation(no_noops, "toy", "toy", px=16, per_shard=2).id
    assert len({preparation(path).id, filtered, *changed}) == 4


def test_a_shard_is_the_same_bytes_whoever_makes_it(demos):
    work = preparation(demos[0])
    again = pickle.loads(pickle.dumps(work))
    assert work.shard(1) == again.shard(1)


def test_a_bad_episode_ends_it_unless_it_may_be_skipped(demos, tmp_path):
    path, _ = demos
    spoil(path, 1)
    with pytest.raises(BadEpisodeError, match=r"data/demo_1: action 1 is not finite"):
        written(preparation(path), tmp_path / "first")
    data = written(preparation(path, skip_bad=True), tmp_path / "second")
    assert (data.manifest.episodes, data.manifest.frames) == (4, 15)
    assert len(data.manifest.skipped) == 1
    assert "demo_1: action 1 is not finite" in data.manifest.skipped[0]


def test_a_shard_of_bad_episodes_is_left_out(demos, tmp_path):
    path, _ = demos
    spoil(path, 0)
    spoil(path, 1)
    data = written(preparation(path, skip_bad=True), tmp_path / "set")
    assert [shard.name for shard in data.manifest.shards] == [shard_name(1), shard_name(2)]
    for number in range(2, 5):
        spoil(path, number)
    with pytest.raises(ValueError, match="every episode was bad"):
        written(preparation(path, skip_bad=True), tmp_path / "nothing")


def test_old_manifests_still_open(demos, tmp_path):
    manifest = written(preparation(demos[0]), tmp_path / "set").manifest
    old = manifest.to_bytes().replace(b',\n "image": "png",\n "skipped": []', b"")
    assert b"skipped" not in old
    assert Manifest.from_bytes(old) == manifest


def test_a_prepared_dataset_is_a_source_too(demos, tmp_path):
    data = written(preparation(demos[0]), tmp_path / "set")
    back = list(Prepared(tmp_path / "set"))
    assert np.array_equal(np.concatenate([demo.images for demo in back]), data.images)
    assert [demo.steps for demo in back] == LENGTHS
    shard = tmp_path / "set" / shard_name(1)
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"shard-00001\.parquet is damaged"):
        Prepared(tmp_path / "set")


def test_formats_and_options_are_checked(demos):
    with pytest.raises(ValueError, match="Did you mean 'libero'"):
        open_source("libro", [demos[0]])
    with pytest.raises(ValueError, match="libero has no option camera"):
        open_source("libero", [demos[0]], Options(camera="wrist"))
    with pytest.raises(ValueError, match="image encoding 'jpg'"):
        preparation(demos[0], image="jpg")


class Collated:
    """A policy that only puts a batch together."""

    def prepare(self, images, texts):
        ids = [list(text.encode()) for text in texts]
        return {
            "images": torch.from_numpy(images),
            "ids": torch.tensor(ids),
            "attention_mask": torch.ones(len(texts), 1),
        }

    def draws(self, keys):
        return {}


def batches(data, rank, workers, parts, seed=7):
    row = benchmark("libero_10")
    run = Run("tiny-paligemma-1", row.name, batch=24, seed=seed, profile="official")
    run = run.resolved(row.recipe)
    normaliser = Normaliser("quantile+clip65", data.manifest.statistics)
    return Batches(run, row, data, Collated(), normaliser, rank, workers, parts)


def hashes(data, first, last, workers, parts=1, **options):
    """Of each step's global batch as the training loop gets it, worker after worker."""
    ranks = [batches(data, rank, workers, parts, **options) for rank in range(workers)]
    steps = zip(*(feed.steps(first, last) for feed in ranks), strict=True)
    return [batch_hash([part for _, share in shares for part in share]) for shares in steps]


def batch_hash(parts):
    digest, columns = hashlib.sha256(), [(*part.inputs.values(), *part.targets) for part in parts]
    for column in zip(*columns, strict=True):
        digest.update(torch.cat(column).numpy().tobytes())
    return digest.hexdigest()


def test_the_global_batch_is_the_same_for_any_workers_and_after_a_resume(demos, tmp_path):
    data = written(preparation(demos[0]), tmp_path / "set")
    alone = hashes(data, 0, 5, 1)
    assert len(set(alone)) == 5
    for workers, parts in ((2, 1), (3, 1), (3, 2), (5, 1), (8, 1)):
        assert hashes(data, 0, 5, workers, parts) == alone
    fresh = Dataset(tmp_path / "set", 16, lambda images: images, keep=0)
    assert hashes(fresh, 3, 5, 3) == alone[3:]
    assert hashes(fresh, 4, 5, 5) == alone[4:]
    assert hashes(data, 0, 1, 1, seed=8) != alone[:1]
