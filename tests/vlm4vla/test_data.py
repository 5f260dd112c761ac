import numpy as np
import pytest

from envs.api import Demonstration
from vlm4vla.data import augment, order
from vlm4vla.data.dataset import KEEP_DECODED, Dataset, build_manifest, encode_shard
from vlm4vla.data.normalise import CHAINS, Normaliser, Statistics
from vlm4vla.data.order import batch_at, generator_at, share


def demonstration(steps, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (steps, 8, 8, 3), dtype=np.uint8)
    actions = rng.uniform(-1, 1, (steps, 7)).astype(np.float32)
    return Demonstration(f"do thing {seed}", images, actions, True, steps)


def publish(folder, *shards):
    files = {
        f"shard-{number:05d}.parquet": encode_shard(demos, number * 10)
        for number, demos in enumerate(shards)
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest = build_manifest("toy", "test", files.items())
    (folder / "manifest.json").write_bytes(manifest.to_bytes())


def write(folder, demos):
    publish(folder, demos)
    return Dataset(folder, 8, lambda images: images)


def test_frames_and_actions_come_back_exactly(tmp_path):
    demos = [demonstration(3, 1), demonstration(5, 2)]
    data = write(tmp_path, demos)
    assert np.array_equal(data.images, np.concatenate([d.images for d in demos]))
    assert np.array_equal(data.actions, np.concatenate([d.actions for d in demos]))
    assert data.instructions[3] == "do thing 2"
    assert (data.manifest.episodes, data.manifest.frames) == (2, 8)


def test_chunks_end_with_their_episode(tmp_path):
    data = write(tmp_path, [demonstration(3, 1), demonstration(5, 2)])
    chunks, mask = data.chunks(np.array([0, 1, 2, 7]), 4)
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert np.array_equal(chunks[0, 2], chunks[0, 3])
    assert np.array_equal(chunks[1, 0], data.actions[1])


def test_a_damaged_shard_is_named(tmp_path):
    publish(tmp_path, [demonstration(3)])
    shard = tmp_path / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    for keep in (0, KEEP_DECODED):
        with pytest.raises(ValueError, match=r"shard-00000\.parquet is damaged"):
            Dataset(tmp_path, 8, lambda images: images, keep=keep)


def test_frames_that_stay_encoded_are_the_same_ones(tmp_path):
    publish(tmp_path, [demonstration(3, 1), demonstration(5, 2)], [demonstration(4, 3)])
    kept, encoded = (
        Dataset(tmp_path, 8, lambda images: images[:, ::-1], keep=keep)
        for keep in (KEEP_DECODED, 0)
    )
    assert encoded.decodes and not kept.decodes
    picked = [11, 0, 7, 8, 3, 11, 2]
    assert all(np.array_equal(encoded.images[number], kept.images[number]) for number in picked)
    assert np.array_equal(encoded.actions, kept.actions)
    assert encoded.instructions == kept.instructions
    assert len(encoded.images) == len(kept.images) == 12


def test_shards_come_when_they_are_needed_and_may_go_at_any_time(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    publish(tmp_path / "far", *([demonstration(4, seed)] for seed in range(3)))
    (tmp_path / "far/manifest.json").rename(tmp_path / "near/manifest.json")
    asked = []

    def fetch(name):
        asked.append(name)
        (tmp_path / "near" / name).write_bytes((tmp_path / "far" / name).read_bytes())

    data = Dataset(tmp_path / "near", 8, lambda images: images, fetch, keep=0)
    assert len(asked) == 3  # the actions of every shard
    before = data.images[5]
    assert asked[3:] == ["shard-00001.parquet"]
    for path in (tmp_path / "near").glob("*.[ap]*"):
        path.unlink()
    assert np.array_equal(data.images[5], before)
    assert asked[3:] == ["shard-00001.parquet"] * 2
    assert list(data.images._maps) == [1]


def test_actions_that_are_not_finite_are_refused():
    demo = demonstration(3)
    demo.actions[1, 2] = np.nan
    with pytest.raises(ValueError, match="episode 7"):
        encode_shard([demo], 7)


def test_order_visits_every_sample_once_an_epoch():
    seen = np.concatenate([batch_at(3, step, 4, 10) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert not np.array_equal(seen[:10], seen[10:])


def test_a_large_datasets_order_stays_in_its_window(monkeypatch):
    monkeypatch.setattr(order, "WINDOW", 64)
    monkeypatch.setattr(order, "BLOCK", 16)
    epochs = [batch_at(5, step, 250, 250) for step in range(2)]
    for seen in epochs:
        assert sorted(seen) == list(range(250))
        blocks = [set(seen[first : first + 64] // 16) for first in range(0, 250, 64)]
        assert max(map(len, blocks)) <= 5  # the last block is short, so windows may cut one
        assert not np.array_equal(np.sort(seen[:64]), seen[:64])
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_workers_share_the_batch_without_changing_it(workers):
    slots = range(32)
    shares = [slots[share(32, rank, workers)] for rank in range(workers)]
    assert [slot for part in shares for slot in part] == list(slots)


def test_augmentation_depends_on_the_slot_alone():
    image, actions = demonstration(1).images[0], demonstration(1).actions
    draws = [augment.apply("mirror+shift", image, actions, generator_at(1, 2, 3)) for _ in range(2)]
    assert np.array_equal(draws[0][0], draws[1][0])


def test_mirror_flips_image_and_sideways_motion():
    image, actions = demonstration(1).images[0], demonstration(1).actions
    for step in range(20):
        out, moved = augment.mirror(image, actions, generator_at(0, step, 0))
        if not np.array_equal(out, image):
            assert np.array_equal(out, image[:, ::-1])
            assert np.allclose(moved[:, 0], -actions[:, 0])
            assert np.array_equal(moved[:, 1:], actions[:, 1:])
            return
    pytest.fail("twenty draws never mirrored")


@pytest.mark.parametrize("kind", CHAINS)
def test_normalisation_inverts_inside_its_range(kind):
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (500, 7)).astype(np.float32)
    actions[:, 4] = 0.125  # a dimension that never moves
    normaliser = Normaliser(kind, Statistics.of(actions))
    inside = actions[np.all(np.abs(normaliser.forward(actions)[:, :6]) < 0.999, axis=1)]
    assert len(inside) > 30
    back = normaliser.inverse(normaliser.forward(inside))
    assert np.allclose(back, inside, atol=1e-6)
    assert Normaliser.from_json(normaliser.to_json()) == normaliser
