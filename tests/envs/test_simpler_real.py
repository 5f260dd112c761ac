"""The real SimplerEnv in its own interpreter, where `make simpler` has built one."""

import dataclasses

import numpy as np
import pytest

from envs.process import SimulatorMissing, SimulatorProcess, interpreter_for
from envs.simpler import BENCHMARKS, INSTRUCTIONS

try:
    interpreter_for("simpler")
except SimulatorMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

CHILD = "tests.envs.simpler_plain"
ROW = dataclasses.replace(BENCHMARKS["simpler"], simulator=f"{CHILD}:Traced")
CARROT, SPOON = "widowx_carrot_on_plate", "widowx_spoon_on_towel"
STEPS = 12


def reach(seed: int) -> np.ndarray:
    """Actions that lower the hand into the scene, turn it and work the gripper."""
    draw = np.random.default_rng(seed)
    actions = np.zeros((STEPS, 7), np.float32)
    actions[:, :3] = draw.uniform(-0.02, 0.02, (STEPS, 3)) - [0, 0, 0.01]
    actions[:, 3:6] = draw.uniform(-0.05, 0.05, (STEPS, 3))
    actions[:, 6] = np.where(draw.random(STEPS) > 0.5, 1, -1)
    return actions


def play(simulator: SimulatorProcess, task: str, episode: int, horizon: int = 4) -> dict:
    """What was seen after how many steps, as bytes."""
    seen = {0: fingerprint(simulator.reset(task, episode, 0))}
    for first in range(0, STEPS, horizon):
        result = simulator.execute(reach(episode)[first : first + horizon])
        seen[first + result.steps] = fingerprint(result.observation)
    return seen


def fingerprint(observation) -> tuple:
    return observation.image.tobytes(), observation.state.tobytes(), observation.instruction


@pytest.fixture(scope="module")
def simulator():
    with SimulatorProcess(ROW, interpreter_for("simpler")) as one:
        yield one


@pytest.fixture(scope="module")
def first(simulator):
    return play(simulator, CARROT, 3)


def test_the_frame_is_a_picture_and_the_instruction_the_tasks(simulator, first):
    image = np.frombuffer(first[0][0], np.uint8).reshape(224, 224, 3)
    assert image.std() > 20
    assert first[0][2] == INSTRUCTIONS[CARROT]


def test_frames_at_replans_equal_those_of_every_step(simulator, first):
    every = play(simulator, CARROT, 3, horizon=1)
    assert {step: every[step] for step in first} == first


@pytest.mark.full
def test_an_episode_after_other_tasks_equals_the_first(simulator, first):
    spoon = play(simulator, SPOON, 5)
    assert play(simulator, CARROT, 3) == first
    assert play(simulator, SPOON, 5) == spoon


def test_episodes_equal_the_published_evaluators_in_another_process(first):
    """Theirs draws every camera at every step and knows nothing of our shortcuts."""
    row = dataclasses.replace(ROW, simulator=f"{CHILD}:Plain")
    with SimulatorProcess(row, interpreter_for("simpler")) as plain:
        assert play(plain, CARROT, 3) == first


def test_the_fingerprint_names_commits_renderer_and_what_is_missing(simulator):
    declared = simulator.fingerprint()
    assert len(declared["simpler_env"]) == len(declared["mani_skill2_real2sim"]) == 40
    assert declared["renderer"]
    assert declared["missing"] == "none" or "/" in declared["missing"]
