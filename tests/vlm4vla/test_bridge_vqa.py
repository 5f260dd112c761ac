"""BridgeVQA's files: exact maps, one look per scene, and a run that goes on where it stopped."""

import json

import numpy as np
import pytest
from PIL import Image

from envs.api import Snapshot
from envs.benchmarks import benchmark
from envs.process import SimulatorProcess
from envs.scenes import scenes
from tests.envs.test_libero import needs_libero
from tests.vlm4vla.test_spatial import BOX, CAMERA, CUP
from vlm4vla.aux import bridge_vqa
from vlm4vla.aux.datasets import DATASETS
from vlm4vla.aux.readers import read
from vlm4vla.aux.samples import Sample
from vlm4vla.aux.spatial import Margins, askable


def snapshot(things=(CUP, BOX)):
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    depth = np.linspace(0.5, 3, 224 * 224, dtype=np.float32).reshape(224, 224)
    segments = np.arange(224 * 224, dtype=np.int32).reshape(224, 224) % 3
    return Snapshot(image, depth, segments, CAMERA, things)


class Looks:
    """Scenes that count how often they were looked at, and can break off."""

    def __init__(self, count, broken=None):
        self.count, self.broken, self.seen = count, broken, []

    def __iter__(self):
        return ((f"scene-{i}", lambda i=i: self.look(i)) for i in range(self.count))

    def look(self, number):
        if number == self.broken:
            raise KeyboardInterrupt
        self.seen.append(number)
        return snapshot()


def test_files_hold_the_frame_its_maps_and_llava_conversations(tmp_path):
    path = bridge_vqa.write(Looks(2), tmp_path, count=5)
    records = json.loads(path.read_text())
    assert [r["id"] for r in records][4:6] == ["scene-0-04", "scene-1-00"]
    first = records[0]
    assert [turn["from"] for turn in first["conversations"]] == ["human", "gpt"]
    assert first["conversations"][0]["value"].startswith("<image>\n")
    seen = snapshot()
    picture = {
        kind: np.array(Image.open(tmp_path / kind / "scene-0.png"))
        for kind in ("images", "depth", "segments")
    }
    assert np.array_equal(picture["images"], seen.image)
    assert np.array_equal(picture["segments"], seen.segments)
    assert np.abs(picture["depth"] / 1000 - seen.depth).max() <= 0.0005001
    assert list(tmp_path.glob("**/*.json")) == [path]


def test_a_stage_reads_them_as_they_are(tmp_path):
    bridge_vqa.write(Looks(2), tmp_path, count=9)
    found = list(read(DATASETS["bridgevqa"], tmp_path))
    assert len(found) == 10 and all(isinstance(sample, Sample) for sample in found)
    assert {sample.kind for sample in found} == {"choice", "number", "text"}
    assert np.array_equal(found[0].picture(), snapshot().image)


def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path):
    whole = bridge_vqa.write(Looks(4), tmp_path / "whole").read_text()
    with pytest.raises(KeyboardInterrupt):
        bridge_vqa.write(Looks(4, broken=2), tmp_path / "parts")
    rest = Looks(4)
    assert bridge_vqa.write(rest, tmp_path / "parts").read_text() == whole
    assert rest.seen == [2, 3]


def test_other_seeds_ask_otherwise(tmp_path):
    texts = [bridge_vqa.write(Looks(1), tmp_path / str(s), seed=s).read_text() for s in (0, 1)]
    assert texts[0] != texts[1]


def test_scenes_without_questions_say_why(tmp_path):
    alone = [("empty", lambda: snapshot(things=(CUP,)))]
    with pytest.raises(ValueError, match=r"1 scenes gave no question .*: their things are unseen"):
        bridge_vqa.write(alone, tmp_path)


@needs_libero
def test_questions_about_real_scenes_are_true_of_their_pictures(tmp_path):
    row = benchmark("libero_object")
    with SimulatorProcess(row) as process:
        (name, look), (_, other) = scenes(process, row.tasks[:1], 2)
        seen = look()
        moved = other()
    path = bridge_vqa.write([(name, lambda: seen)], tmp_path, count=200)
    records = json.loads(path.read_text())
    assert {r["about"] for r in records} == {"side", "height", "depth", "size", "distance"}
    assert not np.array_equal(seen.image, moved.image)
    places = {p.thing.name: p for p in askable(seen.things, seen.camera, Margins())}
    assert {"basket", "robot gripper"} <= set(places)
    # What the pixels themselves say: middles of segments, without any box or pose.
    _, columns = np.indices(seen.segments.shape)
    middles = {}
    for index, each in enumerate(seen.things, 1):
        mask = seen.segments == index
        if mask.any():
            middles[each.name] = (columns[mask].mean(), np.median(seen.depth[mask]))
    checked = 0
    for asked in records:
        text, answer = (turn["value"] for turn in asked["conversations"])
        if not text.startswith("<image>\nWhich is more to the left, the "):
            continue
        a, b = text.rstrip("?").split(", the ")[1].split(" or the ")
        expected = a if middles[a][0] < middles[b][0] else b
        assert answer == f"The {expected} is more to the left."
        checked += 1
    assert checked >= 2
