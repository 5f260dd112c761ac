"""Guessed scenes: the plane that says where up is, and the models' code on random weights."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hub
from PIL import Image

from envs.api import Demonstration, Snapshot, Thing
from tests.vlm4vla import published
from vlm4vla.aux import estimated
from vlm4vla.aux.estimated import Estimator, camera_of, levelled
from vlm4vla.aux.spatial import back_project
from vlm4vla.data.source import Entry, Source

ROOT = Path(__file__).resolve().parents[2]
DOWN = np.radians(40)


def table_depth(camera, height=0.8):
    """Depth of a level table so far below a camera that looks 40 degrees down on it."""
    rows, _ = np.indices((camera.height, camera.width)) + 0.5
    slope = (rows - camera.height / 2) / camera.focal
    return np.clip(height / np.maximum(np.sin(DOWN) + slope * np.cos(DOWN), 1e-3), 0.1, 20)


def test_the_table_tells_how_the_camera_is_tilted():
    camera = camera_of(160, 120)
    depth = table_depth(camera)
    found = levelled(depth, camera)
    right, down, forward = found.pose[:3, :3].T
    assert right == pytest.approx([1, 0, 0], abs=1e-3)
    assert forward == pytest.approx([0, np.cos(DOWN), -np.sin(DOWN)], abs=1e-3)
    assert down[2] < 0
    heights = back_project(depth, found)[..., 2][depth < 15]
    assert np.allclose(heights, -0.8, atol=0.01)


def test_a_wall_does_not_tilt_the_camera():
    camera = camera_of(160, 120)
    assert np.array_equal(levelled(np.full((120, 160), 2.0), camera).pose, camera.pose)


class Known(Estimator):
    """Boxes and depth given, so that what is made of them can be checked."""

    def _found(self, image, names):
        return {"cup": np.array([40.0, 60, 60, 80]), "far box": np.array([150.0, 10, 200, 40])}

    def _depth(self, image):
        depth = table_depth(camera_of(160, 120))
        depth[60:80, 40:55] = 0.9
        return depth


def test_a_thing_is_what_stands_out_of_its_box():
    image = np.zeros((120, 160, 3), np.uint8)
    seen = Known(None, None, None, None).snapshot(image, ["cup", "far box"])
    assert seen.things[0].name == "cup"
    assert (seen.segments == 1).sum() == seen.things[0].pixels
    mask = seen.segments == 1
    assert mask[60:80, 40:55].all() and not mask[:60].any() and not mask[:, 60:].any()
    assert seen.things[0].extent[0] == pytest.approx(0.95 * 15 / seen.camera.focal * 0.9, rel=0.1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A detector and a depth model as the hub holds them, tiny and with random weights."""
    torch.manual_seed(0)
    detector, depth = (tmp_path_factory.mktemp(name) for name in ("detector", "depth"))
    letters = [chr(i) for i in range(97, 123)]
    # OWLv2 takes a first id of 0 for padding, and the largest one for a sentence's end.
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = hub.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16
    )
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = hub.Owlv2Config(
        text_config={
            **small,
            "num_attention_heads": 2,
            "vocab_size": len(words),
            "max_position_embeddings": 16,
            "bos_token_id": 52,
            "eos_token_id": 53,
            "pad_token_id": 53,
        },
        vision_config={**small, "num_attention_heads": 2, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    hub.Owlv2ForObjectDetection(config).save_pretrained(detector)
    looks = hub.Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    hub.Owlv2Processor(looks, tokenizer).save_pretrained(detector)
    backbone = hub.Dinov2Config(
        **{k: v for k, v in small.items() if k != "intermediate_size"},
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_features=["stage1"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = hub.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[16],
        reassemble_factors=[1],
        fusion_hidden_size=16,
        head_hidden_size=8,
        depth_estimation_type="metric",
        max_depth=20,
        patch_size=14,
    )
    hub.DepthAnythingForDepthEstimation(config).save_pretrained(depth)
    hub.DPTImageProcessorPil(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14
    ).save_pretrained(depth)
    return detector, depth


class Frames(Source):
    """Two episodes of noise."""

    entries = tuple(Entry(f"frames: {i}", str(i), i) for i in range(2))

    def load(self, entry):
        images = np.random.default_rng(entry.ref).integers(0, 256, (6, 48, 64, 3), np.uint8)
        return Demonstration("pick", images, np.zeros((6, 7), np.float32), True, 6)


def test_stored_models_look_at_every_episode_of_a_source(folders):
    estimator = Estimator.load(*folders, threshold=0.0)
    looks = dict(estimated.scenes(Frames(), estimator, ["cup", "red box"], per_episode=2))
    assert list(looks) == ["000000-00", "000000-01", "000001-00", "000001-01"]
    seen = looks["000001-01"]()
    assert np.array_equal(seen.image, Frames().read(1).images[4])
    assert seen.depth.shape == seen.segments.shape == (48, 64) and (seen.depth > 0).all()
    assert {thing.name for thing in seen.things} <= {"cup", "red box"}
    again = looks["000001-01"]()
    assert np.array_equal(again.depth, seen.depth) and np.array_equal(again.segments, seen.segments)


def seen_apart(self, image, names):
    """A cup on the left and another thing on the right, whatever the picture shows."""
    camera = camera_of(*image.shape[1::-1])
    things = [
        Thing(name, np.array([side, 1.0, 0.0]), np.full(3, 0.1), 50)
        for name, side in zip(names, (-0.3, 0.3), strict=True)
    ]
    empty = np.zeros(image.shape[:2])
    return Snapshot(image, empty.astype(np.float32), empty.astype(np.int32), camera, tuple(things))


def test_the_job_asks_about_published_pictures(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Estimator, "snapshot", seen_apart)
    published.libero(tmp_path / "data" / "task_demo.hdf5", [6, 6])
    detector, depth = map(str, folders)
    command = ["spatial_questions.py", "--pictures", "libero", str(tmp_path / "data")]
    command += ["--scenes", "1", "--episodes", "1", "--names", "cup", "red box"]
    command += ["--detector", detector, "--depth", depth, "--threshold", "0"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "spatial_questions.py"), run_name="__main__")
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert "questions about 1 scenes" in said.out
    assert [p.name for p in (tmp_path / "out" / "depth").iterdir()] == ["000000-00.png"]
    asked = json.loads((tmp_path / "out" / "questions.json").read_text())
    assert {"side", "distance"} == {question["about"] for question in asked}


def test_missing_models_are_named(tmp_path):
    with pytest.raises(OSError, match=r"detector .* cannot be read .*: download them"):
        Estimator.load(tmp_path / "none", tmp_path / "none")


def test_a_sure_box_goes_before_an_unsure_one_of_its_name(folders):
    estimator = Estimator.load(*folders, threshold=0.0)
    image = np.asarray(Image.effect_noise((64, 48), 90).convert("RGB"))
    boxes = estimator._found(image, ["cup"])
    assert list(boxes) == ["cup"] and boxes["cup"].shape == (4,)
