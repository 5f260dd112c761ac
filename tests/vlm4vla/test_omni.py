"""Omni-generation: exact targets, decoders that learn them, and a stage from data to policy."""

import io
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from envs.api import Camera, Snapshot, Thing
from envs.tabletop import COLOURS
from tests.vlm4vla.test_sft import STAGE
from tests.vlm4vla.train_worker import FolderSink, Stopped
from vlm4vla import weights as stored
from vlm4vla.aux import bridge_vqa, questions
from vlm4vla.aux.datasets import DATASETS
from vlm4vla.aux.drawings import drawings as read_drawings
from vlm4vla.aux.drawings import write
from vlm4vla.aux.omni import REACH, Omni, Regression
from vlm4vla.aux.omni_data import Maps, Scenes, scores
from vlm4vla.aux.omni_job import REQUEST, make_stage_job
from vlm4vla.aux.prepare import prepare_questions
from vlm4vla.aux.readers import read
from vlm4vla.aux.scoring import score_stage
from vlm4vla.aux.sft import build
from vlm4vla.aux.stage_job import StageJob
from vlm4vla.backbones import backbone
from vlm4vla.engine import Engine
from vlm4vla.stages import TINY_STAGES
from vlm4vla.train import train

SIDE = 112
CAMERA = Camera(100.0, SIDE, SIDE, np.diag([1.0, -1, -1, 1]))
NAMES = ("red cup", "blue box")


def scene(seed: int) -> Snapshot:
    """Two coloured squares 0.5 and 1 m before a grey wall at 2 m, each somewhere in its half."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), 128, np.uint8)
    depth, segments = np.full((SIDE, SIDE), 2.0, np.float32), np.zeros((SIDE, SIDE), np.int32)
    things = []
    for number, colour in enumerate(((220, 30, 30), (30, 30, 220))):
        row, column = rng.integers(0, 72), number * 56 + rng.integers(0, 16)
        place = slice(row, row + 40), slice(column, column + 40)
        image[place], depth[place], segments[place] = colour, 0.5 * (number + 1), number + 1
        far = 0.5 * (number + 1)
        centre = np.array([(column - 36) / 100 * far, (36 - row) / 100 * far, -far])
        things.append(Thing(NAMES[number], centre, np.full(3, 0.1 * (number + 1)), 1600))
    return Snapshot(image, depth, segments, CAMERA, tuple(things))


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A stage's data: questions about the tabletop, and nine scenes to draw."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("scenes", "prepared"))
    bridge_vqa.write(((f"{i:03d}", lambda i=i: scene(i)) for i in range(9)), source)
    put = lambda name, data: (folder / name).write_bytes(data)  # noqa: E731
    sources = {row.name: (64, read(replace(row, samples=64), folder)) for row in STAGE.rows}
    shards = write(read_drawings(DATASETS["bridgevqa"], source), put)
    questions.prepare("test", sources, put, shards)
    return folder


def omni(name: str = "tiny-qwen3vl-2b", **options) -> Omni:
    stage = replace(STAGE, backbone=name)
    kind = lambda *args: Omni(*args, classes=3, size=28, **options)  # noqa: E731
    return build(stage, 0, None, kind=kind)


def batch(model: Omni, scenes: Scenes, numbers=(0, 1, 2)):
    """Questions about scenes, with their maps."""
    images = scenes.images(numbers, model.resize)
    inputs = model.prepare_text(images, ["is it red"] * len(numbers), ["yes"] * len(numbers))
    maps = scenes.maps(numbers, 28)
    return inputs, (maps.depth, maps.classes, maps.colours, torch.arange(len(numbers)))


# -- data


def test_maps_are_those_of_the_scene(drawings):
    scenes, seen = Scenes(drawings), scene(1)
    assert scenes.classes == ("background", "blue box", "red cup")
    maps = scenes.maps([1, 2], SIDE)
    assert torch.allclose(maps.depth[0], torch.from_numpy(seen.depth))
    # The red cup is the scene's first thing, and the classes' last.
    assert maps.classes[0].tolist() == np.array([0, 2, 1])[seen.segments].tolist()
    colours = (maps.colours[0].permute(1, 2, 0) + 1) * 127.5
    assert np.abs(colours.numpy() - seen.image).max() < 1e-3


def test_small_maps_hold_no_depth_that_nothing_has(drawings):
    maps = Scenes(drawings).maps(range(6), 28)
    assert set(maps.depth.unique().tolist()) == {0.5, 1.0, 2.0}
    by_class = {c: set(maps.depth[maps.classes == c].tolist()) for c in range(3)}
    assert by_class == {0: {2.0}, 1: {1.0}, 2: {0.5}}


def test_no_scenes_no_stage(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no scenes: write some with"):
        list(read_drawings(DATASETS["bridgevqa"], tmp_path))
    with pytest.raises(ValueError, match="the data of 'robo2vlm' hold no maps to draw"):
        read_drawings(DATASETS["robo2vlm"], tmp_path)


def test_every_eighth_scene_is_held_out(drawings):
    scenes = Scenes(drawings)
    assert (scenes.trained.tolist(), scenes.held_out.tolist()) == ([0, 1, 2, 3, 4, 5, 6, 8], [7])


def test_the_tabletops_maps_are_those_of_its_pictures(tmp_path):
    (first, *_) = islice(read_drawings(DATASETS["tabletop-choice"], tmp_path), 20)
    image, depth, segments = (
        np.asarray(Image.open(io.BytesIO(data)))
        for data in (first.image, first.depth, first.segments)
    )
    assert first.things[-1] == "gripper"
    for number, thing in enumerate(first.things[:-1], 1):
        shown = image[segments == number]
        # A cross below the gripper may lie over a block.
        right = (shown == COLOURS[thing.removesuffix(" block")]).all(-1)
        assert len(shown) == 0 or right.mean() > 0.9
        assert (depth[segments == number] == 455).all()
    assert (depth[segments == 0] == 500).all()
    assert set(map(tuple, image[segments == len(first.things)].tolist())) == {(20,) * 3, (255,) * 3}


def test_scores_are_one_for_the_truth_and_nothing_for_a_guess(drawings):
    wanted = Scenes(drawings).maps(range(9), 28)
    assert scores(wanted, wanted) == {"depth": 1.0, "classes": 1.0, "colours": 1.0}
    flat = Maps(
        torch.full_like(wanted.depth, 2.0),
        torch.zeros_like(wanted.classes),
        torch.full_like(wanted.colours, float(wanted.colours.median())),
    )
    told = scores(flat, wanted)
    assert told["depth"] == told["colours"] == 0.0
    background = float((wanted.classes == 0).float().mean())
    assert told["classes"] == pytest.approx(background / 3)


# -- decoders


def test_sizes_that_cannot_be_decoded_are_refused():
    with pytest.raises(ValueError, match=r"maps of 60 pixels .* ask for 7, 14, 28, 56, 112, 224"):
        Regression(64, 16, 3, 60, 16)
    with pytest.raises(ValueError, match=r"Unknown decoder 'regresion'. Did you mean 'regression'"):
        omni(decoder="regresion")


def test_channels_become_metres_classes_and_colours():
    decoder = Regression(64, 16, 3, 7, 16)
    stacked = torch.zeros(1, 1 + 3 + 3, 7, 7)
    stacked[:, 0], stacked[:, 2], stacked[:, 6] = 0.5, 9.0, -7.0
    maps = decoder.maps(stacked)
    assert maps.depth.unique().tolist() == [0.75 * REACH]
    assert maps.classes.unique().tolist() == [1]
    assert maps.colours[:, 2].unique().tolist() == [-1.0]


@pytest.mark.parametrize("name", ["tiny-qwen3vl-2b", "tiny-paligemma-1", "tiny-kosmos-2"])
def test_maps_teach_the_vision_tower_of_every_family(name, drawings):
    model = omni(name)
    inputs, targets = batch(model, Scenes(drawings))
    inputs["labels"][1:] = -100
    loss, metrics = model.loss(inputs, *targets)
    loss.backward()
    vision = list(model.vlm.get_submodule(model.row.modules.vision).parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vision[:2])
    assert set(metrics) == {
        *("loss", "token_accuracy", "map_loss", "depth_error", "class_accuracy", "colour_error")
    }


def test_the_loss_is_the_answers_and_the_maps(drawings):
    model, plain = omni(weight=0.5), build(replace(STAGE, backbone="tiny-qwen3vl-2b"), 0, None)
    inputs, targets = batch(model, Scenes(drawings))
    found = model.loss(inputs, *targets)[1]
    text = plain.loss(inputs)[0].item()
    assert found["loss"].item() == pytest.approx(text + 0.5 * found["map_loss"].item(), rel=1e-5)


def test_only_the_last_pictures_are_drawn(drawings):
    model = omni()
    inputs, targets = batch(model, Scenes(drawings))
    last = tuple(target[1:] for target in targets)
    whole = model.loss(inputs, *targets)[1]["map_loss"].item()
    part = model.loss(inputs, *last)[1]["map_loss"].item()
    tail = {name: tensor[1:] for name, tensor in inputs.items()}
    assert part == pytest.approx(model.loss(tail, *last)[1]["map_loss"].item(), rel=1e-4)
    assert part != pytest.approx(whole, rel=1e-4)


def overfitted(model: Omni, scenes: Scenes, steps: int, lr: float = 3e-3) -> Omni:
    inputs, targets = batch(model, scenes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        optimiser.zero_grad()
        keys = torch.arange(3) + 3 * step
        model.loss(inputs, *targets[:-1], keys)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model


def assert_drawn(model: Omni, scenes: Scenes, accuracy: float, metres: float) -> None:
    inputs, (depth, classes, *_) = batch(model, scenes)
    maps = model.predict(inputs, torch.arange(3))
    assert (maps.classes == classes).float().mean() > accuracy
    assert (maps.depth - depth).abs().mean() < metres
    said = model.lm_logits(inputs)[torch.arange(3), inputs["last_index"]].argmax(-1)
    assert (said == inputs["labels"][torch.arange(3), inputs["last_index"] + 1]).all()


def test_regression_learns_a_batch_and_its_answers(drawings):
    scenes = Scenes(drawings)
    assert_drawn(overfitted(omni(), scenes, 80), scenes, 0.97, 0.2)


def test_diffusion_learns_a_batch_and_its_answers(drawings):
    pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
    scenes = Scenes(drawings)
    assert_drawn(overfitted(omni(decoder="diffusion"), scenes, 120, 2e-3), scenes, 0.95, 0.2)


def test_diffusion_draws_from_each_samples_key_alone(drawings):
    pytest.importorskip("diffusers", reason="the extra `diffusion` is not installed")
    model, scenes = omni(decoder="diffusion").eval(), Scenes(drawings)
    three = model.predict(batch(model, scenes)[0], torch.tensor([4, 5, 6]))
    one = model.predict(batch(model, scenes, (1,))[0], torch.tensor([5]))
    other = model.predict(batch(model, scenes, (1,))[0], torch.tensor([7]))
    assert torch.allclose(three.colours[1], one.colours[0], atol=1e-3)
    assert not torch.allclose(one.colours, other.colours, atol=1e-3)


def test_without_diffusers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[diffusion\]"):
        omni(decoder="diffusion")


# -- the stage


DRAWS = replace(STAGE, draws="bridgevqa", map_px=14)


def job(tmp_path, drawings) -> StageJob:
    return replace(make_stage_job(DRAWS, Engine(), drawings, tmp_path), log_every=1)


def test_a_batch_is_questions_and_scenes(tmp_path, drawings):
    made = job(tmp_path, drawings)
    model = made.model(None)
    ((_, (whole,)),) = made.feed(model, 0, 1, 1).steps(1, 2)
    assert len(whole.inputs["input_ids"]) == 16
    assert (whole.inputs["labels"][8:] == -100).all() and (whole.inputs["labels"] >= 0).any()
    ids = model.tokenizer.decode(whole.inputs["input_ids"][-1].tolist())
    assert model.tokenizer.decode(model.tokenizer.encode(REQUEST)) in ids
    halves = [next(iter(made.feed(model, rank, 2, 1).steps(1, 2)))[1][0] for rank in (0, 1)]
    depth = torch.cat([half.targets[0] for half in halves])
    assert sorted(d.sum().item() for d in depth) == sorted(d.sum().item() for d in whole.targets[0])


def test_a_stopped_stage_resumes_to_the_same_weights_and_starts_a_policy(tmp_path, drawings):
    made = job(tmp_path / "a", drawings)
    whole, cut = FolderSink(tmp_path / "whole"), FolderSink(tmp_path / "cut", stop_after=3)
    train(made, whole)
    assert {"map_loss", "depth_error", "class_accuracy"} <= whole.rows[0].keys()
    again = replace(made, scratch=tmp_path / "b", engine=Engine(checkpoint_every=2))
    with pytest.raises(Stopped):
        train(again, cut)
    train(again, FolderSink(tmp_path / "cut"))
    one, two = whole.weights(4), cut.weights(4)
    assert all(torch.equal(one[name], two[name]) for name in one)
    file = tmp_path / "whole" / "step-00000004" / "policy.safetensors"
    assert any(name.startswith("decoder.") for name in one)
    vlm = stored.staged(backbone(STAGE.backbone), file).state_dict()
    plain = build(STAGE, 0, file).state_dict()
    backbones = {name for name in one if name.startswith("vlm.")}
    assert {f"vlm.{name}" for name in vlm} >= backbones == set(plain) & backbones
    assert all(torch.equal(vlm[name[4:]], one[name]) for name in backbones)
    told = score_stage(DRAWS, drawings, file)["scores"]
    assert set(told) > {"bridgevqa/depth", "bridgevqa/classes", "bridgevqa/colours"}
    assert all(told[f"bridgevqa/{kind}"]["asked"] == 1 for kind in ("depth", "classes"))


def test_stages_that_draw_prepare_their_scenes(tmp_path, monkeypatch):
    stage = TINY_STAGES["omni-generation"]
    for row in stage.rows:
        monkeypatch.setitem(DATASETS, row.name, replace(row, samples=16))
    monkeypatch.setattr("vlm4vla.aux.drawings.TABLETOP", 16)
    manifest = prepare_questions(stage, {}, lambda name, data: (tmp_path / name).write_bytes(data))
    assert [shard.rows for shard in manifest.drawings] == [16]
    things = (*(f"{colour} block" for colour in COLOURS), "gripper")
    assert Scenes(tmp_path).classes == ("background", *sorted(things))
