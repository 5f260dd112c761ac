"""Readers of CALVIN, LIBERO and RLDS on small data in the published layouts (`published.py`)."""

import io
import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.vlm4vla import published
from vlm4vla.data.calvin import Calvin
from vlm4vla.data.frames import decode, encode_jpeg
from vlm4vla.data.libero_hdf5 import LiberoHdf5, moving
from vlm4vla.data.rlds import Rlds, binary_gripper
from vlm4vla.data.source import BadEpisodeError
from vlm4vla.data.tfrecord import build_example, masked_crc, parse_example


def replace(group, name, shape):
    del group[name]
    group.create_dataset(name, shape, "f8")


SPANS, TEXTS = [(2, 5), (4, 9)], ["open the drawer", "push the red block"]


def test_calvin_comes_back_exactly(tmp_path):
    frames, moves = published.calvin(tmp_path / "training", SPANS, TEXTS)
    source = Calvin(tmp_path)
    for (first, last), text, demo in zip(SPANS, TEXTS, source, strict=True):
        assert demo.instruction == text
        assert np.array_equal(demo.images, frames[first : last + 1])
        assert np.array_equal(demo.actions, moves[first : last + 1].astype(np.float32))
    assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()


def test_calvin_has_a_split_for_each_scene(tmp_path):
    published.calvin(tmp_path / "training", SPANS, TEXTS)
    published.calvin(tmp_path / "validation", SPANS[:1], ["turn on the light"])
    assert [demo.instruction for demo in Calvin(tmp_path, "validation")] == ["turn on the light"]


def test_calvin_without_its_annotation(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"auto_lang_ann\.npy is missing"):
        Calvin(tmp_path)


def test_calvin_annotation_may_not_run_code(tmp_path):
    published.calvin(tmp_path / "training", SPANS, TEXTS)
    path = tmp_path / "training" / "lang_annotations" / "auto_lang_ann.npy"
    np.save(path, np.array({"language": Path("x")}, object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"auto_lang_ann\.npy cannot be read: .*pathlib"):
        Calvin(tmp_path)


def test_calvin_annotation_of_an_older_numpy(tmp_path):
    frames, _ = published.calvin(tmp_path / "training", SPANS, TEXTS)
    path = tmp_path / "training" / "lang_annotations" / "auto_lang_ann.npy"
    content = np.load(path, allow_pickle=True)
    content.item()["info"]["indx"] = [tuple(map(np.int64, span)) for span in SPANS]
    # The dataset was published with numpy 1, whose arrays name numpy.core.
    pickled = pickle.dumps(content, protocol=3).replace(b"cnumpy._core.", b"cnumpy.core.")
    assert b"cnumpy.core.multiarray\nscalar" in pickled
    path.write_bytes(path.read_bytes()[:128] + pickled)
    assert np.array_equal(Calvin(tmp_path).read(0).images, frames[2:6])


def test_calvin_truncated_annotation(tmp_path):
    published.calvin(tmp_path / "training", SPANS, TEXTS)
    path = tmp_path / "training" / "lang_annotations" / "auto_lang_ann.npy"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"auto_lang_ann\.npy cannot be read"):
        Calvin(tmp_path)


def test_calvin_frame_index_out_of_range(tmp_path):
    published.calvin(tmp_path / "training", [(0, 9)], ["lift it"], last=4)
    with pytest.raises(BadEpisodeError, match=r"row 0: frame index 5 is out of range"):
        Calvin(tmp_path).read(0)


def test_calvin_truncated_frame_is_named(tmp_path):
    published.calvin(tmp_path / "training", [(0, 3)], ["lift it"])
    path = tmp_path / "training" / "episode_0000002.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadEpisodeError, match=r"episode_0000002\.npz: damaged or truncated"):
        Calvin(tmp_path).read(0)


def test_calvin_duplicate_stretch(tmp_path):
    published.calvin(tmp_path / "training", [SPANS[0], SPANS[1], SPANS[0]], [*TEXTS, TEXTS[0]])
    source = Calvin(tmp_path)
    assert source.read(0).instruction == TEXTS[0]
    with pytest.raises(BadEpisodeError, match=r"row 2: duplicate of .*row 0"):
        source.read(2)


def test_libero_frames_are_turned_as_the_benchmark_shows_them(tmp_path):
    made = published.libero(tmp_path / "bowl_demo.hdf5", [3, 5])
    demos = list(LiberoHdf5([tmp_path]))
    for (frames, moves), demo in zip(made, demos, strict=True):
        assert demo.instruction == "put the bowl on the plate"
        assert np.array_equal(demo.images, np.rot90(frames, 2, axes=(1, 2)))
        assert np.array_equal(demo.actions, moves.astype(np.float32))


def test_libero_demonstrations_are_in_numeric_order(tmp_path):
    made = published.libero(tmp_path / "bowl_demo.hdf5", [2] * 11)
    source = LiberoHdf5([tmp_path / "bowl_demo.hdf5"])
    assert source.entries[10].where.endswith("data/demo_10")
    assert np.array_equal(source.read(10).actions, made[10][1].astype(np.float32))


def test_no_ops_keep_what_changes_the_gripper():
    still = np.zeros(6)
    steps = [(still, -1), (still + 1, -1), (still, -1), (still, 1), (still, 1), (still + 1, 1)]
    moves = moving(np.array([[*arm, grip] for arm, grip in steps]))
    assert moves.tolist() == [False, True, False, True, False, True]


def test_libero_no_noops_drops_frames_with_their_actions(tmp_path):
    path = tmp_path / "bowl_demo.hdf5"
    published.libero(path, [6])
    with h5py.File(path, "a") as file:
        file["data/demo_0/actions"][2:4, :6] = 0
        file["data/demo_0/actions"][1:4, 6] = 1
    whole, short = (LiberoHdf5([path], no_noops=flag).read(0) for flag in (False, True))
    assert (whole.steps, short.steps) == (6, 4)
    assert np.array_equal(short.images, whole.images[[0, 1, 4, 5]])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda d: d["demo_1/actions"].__setitem__((2, 3), np.nan), r"action 2 is not finite"),
        (lambda d: d.__delitem__("demo_1/obs"), r"no dataset obs/agentview_rgb"),
        (
            lambda d: (
                d.__delitem__("demo_1/actions"),
                d.create_dataset("demo_1/actions", (5, 6), "f8"),
            ),
            r"actions \[5, 6\] for 5 frames, expected \[5, 7\]",
        ),
        (
            lambda d: (
                d.__delitem__("demo_1/actions"),
                d.create_dataset("demo_1/actions", (4, 7), "f8"),
            ),
            r"actions \[4, 7\] for 5 frames",
        ),
        (
            lambda d: d["demo_1/actions"].__setitem__(slice(None), d["demo_2/actions"]),
            r"demo_2: duplicate of .*demo_1",
        ),
    ],
)
def test_bad_libero_episodes_are_named(tmp_path, damage, why):
    path = tmp_path / "bowl_demo.hdf5"
    published.libero(path, [3, 5, 5])
    with h5py.File(path, "a") as file:
        damage(file["data"])
    source = LiberoHdf5([path])
    assert source.read(0).steps == 3
    with pytest.raises(BadEpisodeError, match=why):
        list(source)


def test_libero_truncated_file_and_missing_language(tmp_path):
    path = tmp_path / "bowl_demo.hdf5"
    published.libero(path, [3])
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(BadEpisodeError, match=r"bowl_demo\.hdf5: damaged or truncated"):
        LiberoHdf5([path]).read(0)
    published.libero(path, [3])
    with h5py.File(path, "a") as file:
        del file["data"].attrs["problem_info"]
    with pytest.raises(ValueError, match="no language_instruction"):
        LiberoHdf5([path])


def test_checksums_are_tensorflows():
    # TFRecord's own masking of crc32c("123456789") = 0xE3069283.
    crc = 0xE3069283
    assert masked_crc(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def test_examples_come_back_and_have_protobufs_bytes():
    features = {"a": [b"x", b""], "b": np.array([1.5, -2], np.float32), "c": np.array([-1, 7])}
    back = parse_example(build_example(features))
    assert back["a"] == [b"x", b""]
    assert all(np.array_equal(back[name], features[name]) for name in "bc")
    # Example{features{feature{key "a" value{bytes_list{value "x"}}}}}, by hand from the schema.
    assert build_example({"a": [b"x"]}) == b"\n\x0c\n\x0a\n\x01a\x12\x05\n\x03\n\x01x"


def test_rlds_libero_comes_back(tmp_path):
    payload, (frames, moves, _) = published.rlds_record(4, 1, "image", "open it")
    other, _ = published.rlds_record(3, 2, "image")
    published.rlds(tmp_path / "1.0.0", "libero_10_no_noops", [[payload], [other]], "image")
    demos = list(Rlds(tmp_path / "1.0.0"))
    assert [demo.instruction for demo in demos] == ["open it", "put the spoon on the towel"]
    assert np.array_equal(demos[0].images, frames)
    assert np.array_equal(demos[0].actions, moves)


def test_rlds_bridge_actions_are_the_motions_that_were_made(tmp_path):
    payload, (frames, moves, state) = published.rlds_record(6, 1)
    published.rlds(tmp_path / "1.0.0", "bridge_orig", [[payload]])
    demo = Rlds(tmp_path / "1.0.0").read(0)
    assert np.array_equal(demo.images, frames[1:-1])
    assert np.allclose(demo.actions[:, :6], state[2:, :6] - state[1:-1, :6])
    assert np.array_equal(demo.actions[:, 6], 2 * moves[1:-1, 6] - 1)


def test_gripper_in_between_takes_the_next_decided_value():
    values = np.array([0.5, 1.0, 0.5, 0.3, 0.0, 0.6])
    assert binary_gripper(values).tolist() == [1, 1, 0, 0, 0, 0.6]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: published.rlds_record(4, 1, "image", dims=6)[0], "actions have 6 dimensions"),
        (lambda: published.rlds_record(4, 0, "image", text="")[0], "the instruction is empty"),
        (lambda: build_example({"steps/action": np.zeros(7)}), "no feature steps/observation"),
        (lambda: b"\xff\xff", r"not a tf\.train\.Example"),
    ],
)
def test_bad_rlds_records_are_named(tmp_path, make, why):
    good = published.rlds_record(4, 7, "image")[0]
    published.rlds(tmp_path / "1.0.0", "libero_10", [[good, make()]], "image")
    source = Rlds(tmp_path / "1.0.0")
    source.read(0)
    with pytest.raises(BadEpisodeError, match=f"00000-of-00001: record 1: {why}"):
        source.read(1)


def test_rlds_damage_and_truncation_are_named(tmp_path):
    good = [published.rlds_record(4, seed, "image")[0] for seed in range(2)]
    published.rlds(tmp_path / "1.0.0", "libero_10", [good], "image")
    path = next((tmp_path / "1.0.0").glob("*.tfrecord-*"))
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(BadEpisodeError, match="record 0: the data's checksum differs"):
        Rlds(tmp_path / "1.0.0").read(0)
    path.write_bytes(data[:-9])
    source = Rlds(tmp_path / "1.0.0")
    source.read(0)
    with pytest.raises(BadEpisodeError, match="record 1 is truncated"):
        source.read(1)


def test_rlds_missing_shard_wrong_count_and_schema(tmp_path):
    good = [[published.rlds_record(4, seed, "image")[0]] for seed in range(2)]
    folder = tmp_path / "1.0.0"
    published.rlds(folder, "libero_10", good, "image")
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"][1] = "3"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"00001-of-00002 holds 1 episodes, .* says 3"):
        Rlds(folder)
    next(folder.glob("*.tfrecord-00001*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"shards \[1\] of 2 of split 'train' missing"):
        Rlds(folder)
    with pytest.raises(ValueError, match=r"features\.json: no \['steps/observation/image_0'\]"):
        Rlds(folder, layout="bridge")


def test_rlds_duplicate_record(tmp_path):
    good = published.rlds_record(4, 1, "image")[0]
    published.rlds(tmp_path / "1.0.0", "libero_10", [[good], [good]], "image")
    with pytest.raises(BadEpisodeError, match=r"00001-of-00002: record 0: duplicate of .*00000"):
        list(Rlds(tmp_path / "1.0.0"))


def test_frames_of_other_sizes_are_named(tmp_path):
    published.calvin(tmp_path / "training", [(0, 3)], ["lift it"])
    path = tmp_path / "training" / "episode_0000002.npz"
    np.savez(path, rgb_static=np.zeros((5, 5, 3), np.uint8), rel_actions=np.zeros(7))
    with pytest.raises(BadEpisodeError, match=r"auto_lang_ann\.npy: row 0: all input arrays"):
        Calvin(tmp_path).read(0)


def test_wrong_dimension_and_nan_in_calvin(tmp_path):
    published.calvin(tmp_path / "training", [(0, 1), (2, 3)], ["lift it", "push it"])
    frame = np.zeros((20, 20, 3), np.uint8)
    for step in (0, 1):
        path = tmp_path / "training" / f"episode_{step:07d}.npz"
        np.savez(path, rgb_static=frame, rel_actions=np.zeros(8))
    path = tmp_path / "training" / "episode_0000003.npz"
    np.savez(path, rgb_static=frame, rel_actions=np.full(7, np.nan))
    source = Calvin(tmp_path)
    with pytest.raises(BadEpisodeError, match=r"row 0: actions \[2, 8\] for 2 frames"):
        source.read(0)
    with pytest.raises(BadEpisodeError, match=r"row 1: action 1 is not finite"):
        source.read(1)


def test_a_jpeg_that_claims_gigapixels_is_damaged():
    data = bytearray(encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
    height = data.index(b"\xff\xc0") + 5
    data[height : height + 4] = b"\xff\x00\xff\x00"  # and the same of its width
    with pytest.raises(ValueError, match="claims 65280 x 65280 pixels"):
        decode(bytes(data))


def test_a_png_with_a_broken_chunk_is_damaged():
    data = bytearray(published.png(published.smooth(1, 16)[0]))
    data[33:37] = (int.from_bytes(data[33:37], "big") - 6).to_bytes(4, "big")  # its first length
    with pytest.raises(ValueError, match=r"damaged or truncated \(broken PNG file"):
        decode(bytes(data))


def test_no_other_format_of_pictures_is_decoded():
    """Pillow's other decoders are many, and one starts a program."""
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "EPS")
    with pytest.raises(ValueError, match="damaged or truncated"):
        decode(out.getvalue())


@pytest.mark.parametrize(
    ("features", "why"),
    [
        ({"steps/observation/image": np.zeros(3)}, "must be bytes"),
        ({"steps/language_instruction": []}, "no instruction"),
        ({"steps/action": [b"1"] * 21}, "holds bytes, not numbers"),
    ],
)
def test_rlds_features_of_another_kind_are_named(tmp_path, features, why):
    good = parse_example(published.rlds_record(3, 1, "image")[0])
    published.rlds(
        tmp_path / "1.0.0", "libero_10", [[build_example({**good, **features})]], "image"
    )
    with pytest.raises(BadEpisodeError, match=why):
        Rlds(tmp_path / "1.0.0").read(0)


@pytest.mark.parametrize("info", ["[]", "{", '{"name": 3}', '{"name": "libero", "splits": 1}'])
def test_rlds_description_of_something_else(tmp_path, info):
    published.rlds(tmp_path / "1.0.0", "libero_10", [[]], "image")
    (tmp_path / "1.0.0" / "dataset_info.json").write_text(info)
    with pytest.raises(ValueError, match=r"1\.0\.0"):
        Rlds(tmp_path / "1.0.0")


def test_libero_damage_beyond_its_head_hides_its_file_alone(tmp_path):
    for name in ("bowl", "cup"):
        published.libero(tmp_path / f"{name}_demo.hdf5", [3])
    path = tmp_path / "bowl_demo.hdf5"
    path.write_bytes(path.read_bytes().replace(b"HEAP", b"HOLE"))
    source = LiberoHdf5([tmp_path])
    with pytest.raises(BadEpisodeError, match=r"bowl_demo\.hdf5: damaged or truncated"):
        source.read(0)
    assert source.read(1).steps == 3


@pytest.mark.parametrize("told", ["3", "[]", '{"language_instruction": [1]}'])
def test_libero_language_of_another_kind(tmp_path, told):
    published.libero(tmp_path / "bowl_demo.hdf5", [3])
    with h5py.File(tmp_path / "bowl_demo.hdf5", "a") as file:
        file["data"].attrs["problem_info"] = told
    with pytest.raises(ValueError, match="no language_instruction"):
        LiberoHdf5([tmp_path])
