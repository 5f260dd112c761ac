"""Questions about the tabletop are right, repeatable, and answered by the shipped models."""

import dataclasses
import itertools

import numpy as np
import pytest

from envs import tabletop
from envs.tabletop import Scene
from vlm4vla.aux import pretrain_tiny
from vlm4vla.aux.pretrain_tiny import Plan, StuckError
from vlm4vla.aux.tabletop_vqa import GRID, KINDS, ask, cell, examples, random_scene
from vlm4vla.backbones import BACKBONES
from vlm4vla.policies import build_policy
from vlm4vla.run import Run
from vlm4vla.tokenizers import tiny_tokenizer
from vlm4vla.weights import tiny_file

TINY = {row.architecture: row.name for row in BACKBONES.values() if row.tiny}

# Red at the far left, blue in the tray below the gripper, which is open and 7 cm high.
SCENE = Scene(
    blocks=np.array([[0.06, 0.33], [0.22, 0.04]]),
    colours=("red", "blue"),
    target=0,
    gripper=np.array([0.22, 0.16, 0.07]),
)
ANSWERS = {
    "where is the red block": "<cell09>",
    "where is the blue block": "<cell60>",
    "where is the green block": "none",
    "where is the yellow block": "none",
    "seen from the gripper where is the red block": "<cell00>",
    "seen from the gripper where is the blue block": "<cell51>",
    "where is the gripper": "<cell36>",
    "what colour is the block at <cell09>": "red",
    "what colour is the block at <cell60>": "blue",
    "is there a red block": "yes",
    "is there a blue block": "yes",
    "is there a green block": "no",
    "is there a yellow block": "no",
    "is the gripper open": "yes",
    "is the gripper closed": "no",
    "which block is in the gripper": "none",
    "how high is the gripper": "3",
    "is the red block left of the gripper": "yes",
    "is the red block right of the gripper": "no",
    "is the red block above the gripper": "yes",
    "is the red block below the gripper": "no",
    "is the blue block above the gripper": "no",
    "is the blue block below the gripper": "yes",
    "where is the red block from the gripper": "left above",
    "where is the blue block from the gripper": "near below",
    "is the red block in the tray": "no",
    "is the blue block in the tray": "yes",
}
CAPTION = {"red <cell09>", "blue <cell60>", "gripper <cell36>"}


def test_answers_on_a_literal_scene():
    rng = np.random.default_rng(0)
    asked = [ask(rng, SCENE) for _ in range(1500)]
    answers = {q.text: q.answer for q in asked if q.kind not in ("describe", "mention")}
    assert answers == ANSWERS


def test_captions_name_everything_in_any_order():
    rng = np.random.default_rng(0)
    answers = {ask(rng, SCENE, "describe").answer for _ in range(100)}
    assert len(answers) == 6
    for answer in answers:
        words = answer.split()
        pairs = zip(words[::2], words[1::2], strict=True)
        assert {" ".join(pair) for pair in pairs} == CAPTION


def test_any_sentence_that_names_a_block_points_at_it():
    rng = np.random.default_rng(0)
    asked = [ask(rng, SCENE, "mention") for _ in range(50)]
    assert len({q.text for q in asked}) > 40
    for question in asked:
        colour = "red" if "the red block" in question.text else "blue"
        assert f"the {colour} block" in question.text
        assert question.answer == ANSWERS[f"where is the {colour} block"]


def test_a_held_block_is_named():
    held = dataclasses.replace(SCENE, gripper=np.array([0.06, 0.33, 0.05]), closed=True, held=0)
    assert ask(np.random.default_rng(0), held, "held").answer == "red"


def test_cells_are_numbered_as_the_picture_is_read():
    assert cell(np.array([0.0, tabletop.TABLE])) == "<cell00>"
    assert cell(np.array([tabletop.TABLE, 0.0])) == "<cell63>"
    middles = (np.arange(GRID) + 0.5) * tabletop.TABLE / GRID
    named = [cell(np.array([x, y])) for y in middles[::-1] for x in middles]
    assert named == [f"<cell{i:02d}>" for i in range(64)]


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="no questions of kind 'colour'; there are describe"):
        next(examples(0, "colour"))


def test_examples_depend_on_the_seed_alone():
    def texts(seed):
        return [(q.text, q.answer) for _, q in itertools.islice(examples(seed), 50)]

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


def test_every_word_is_one_token():
    tokenizer = tiny_tokenizer()
    for _, question in itertools.islice(examples(0), 400):
        for text in (question.text, question.answer):
            assert len(tokenizer.encode(text)) == len(text.split())


def test_scenes_hold_separate_blocks_on_the_table():
    rng = np.random.default_rng(0)
    for scene in (random_scene(rng) for _ in range(200)):
        assert 2 <= len(scene.blocks) == len(set(scene.colours)) <= 4
        assert ((scene.blocks >= 0) & (scene.blocks <= tabletop.TABLE)).all()


def test_shares_sum_to_one():
    assert sum(share for _, share in KINDS.values()) == pytest.approx(1)


def test_a_training_that_stays_below_the_gate_says_so():
    with pytest.raises(StuckError, match="2 seeds from 5 on stayed below 85%"):
        pretrain_tiny.pretrain("tiny-paligemma-1", 5, Plan(steps=2, batch=4, tries=2))


def test_full_rows_are_refused():
    with pytest.raises(ValueError, match="'paligemma-1' is not a tiny row"):
        pretrain_tiny.pretrain("paligemma-1")


SHIPPED = ("kosmos-2", "paligemma-1", "paligemma-2", "qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe")


@pytest.mark.parametrize("architecture", SHIPPED)
def test_shipped_weights_point(architecture):
    name = TINY[architecture]
    assert tiny_file(BACKBONES[name]).stat().st_size <= 1_000_000
    policy = build_policy(Run(name, "tabletop"), chunk=1)
    kinds = {"point", "describe", "mention"}
    for kind, share in pretrain_tiny.accuracy(policy, count=100, kinds=kinds).items():
        assert share >= 0.8, kind
