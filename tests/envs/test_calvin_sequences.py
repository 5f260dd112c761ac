"""CALVIN's protocol without CALVIN: the chains, their scenes, and the command that hashes them."""

import subprocess
import sys

import numpy as np
import pytest

from envs import calvin_sequences as protocol
from envs.child import ROOT

HASH_100 = "b937e081cc21edd1600256fcb4175928a9d1e30087fde05da2540ec648fa1748"


def test_the_command_prints_the_published_hash_without_calvin():
    command = [sys.executable, "-m", "envs.calvin", "--sequences", "100", "--sha256"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == HASH_100 + "\n"


def test_the_first_sequence_of_a_thousand():
    state, chain = protocol.sequence(0)
    assert chain == (
        "rotate_blue_block_right",
        "move_slider_right",
        "lift_red_block_slider",
        "place_in_slider",
        "turn_off_lightbulb",
    )
    assert state == {
        "led": 1,
        "lightbulb": 1,
        "slider": "left",
        "drawer": "open",
        "red_block": "slider_left",
        "blue_block": "table",
        "pink_block": "slider_right",
        "grasped": 0,
    }


def test_there_are_34_subtasks_of_11_kinds():
    assert len(protocol.RULES) == 34
    assert len({protocol.category(name) for name in protocol.RULES}) == 11


def test_every_chain_is_feasible_and_repeats_no_kind():
    for state, chain in protocol.sequences(60):
        assert len(chain) == 5
        assert protocol.is_feasible(state, chain)


def test_a_subtask_needs_exactly_one_way_to_be_done():
    state = {**protocol.sequence(0)[0], "red_block": "grasped", "grasped": 1, "pink_block": "table"}
    assert protocol.successor(state, "place_in_slider")["red_block"] == "slider_left"
    assert protocol.successor(state, "stack_block") is None  # onto blue, or onto pink


def test_one_sequence_costs_no_other():
    assert protocol.sequence(37, 60) == protocol.sequences(60)[37]


def test_indices_beyond_the_evaluation_are_new_draws():
    further = [protocol.sequence(60 + i, 60) for i in range(60)]
    published = protocol.sequences(60)
    assert sum(one in published for one in further) <= 1
    assert all(protocol.is_feasible(state, chain) for state, chain in further)


def test_a_negative_index_is_an_error():
    with pytest.raises(IndexError, match="numbered from 0"):
        protocol.sequence(-1)


def test_drawing_leaves_numpys_global_generator_alone():
    np.random.seed(7)
    want = np.random.RandomState(7).uniform()
    protocol.initial_pose(protocol.sequence(3, 8)[0])
    assert np.random.uniform() == want


def test_the_first_pose_is_seeded_by_the_state():
    state = protocol.sequence(0)[0]
    assert protocol.pose_seed(state) == 2138410836
    robot, scene = protocol.initial_pose(state)
    assert robot.shape == (15,)
    assert scene[[0, 1, 3, 4, 5]] == pytest.approx([0.28, 0.22, 0.088, 1, 1])
    np.testing.assert_allclose(scene[6:9], [-0.24085, 0.09240, 0.46099], atol=1e-5)


def test_blocks_never_share_a_place():
    for state in protocol.initial_states():
        blocks = protocol.initial_pose(state)[1][6:].reshape(3, 6)
        gaps = [np.linalg.norm(blocks[i, :3] - blocks[j, :3]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert min(gaps) > 0.1
        assert np.all(np.abs(blocks[:, 5] - np.pi / 2) <= np.pi / 8)
