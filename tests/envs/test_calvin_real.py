"""The real CALVIN in its own interpreter, where `make calvin` has built one.

The actions are computed from a chain's starting pose: the tool descends beside the block that
the first instruction names and pushes it, so that episodes have contacts and one success.
"""

import dataclasses
import itertools

import numpy as np
import pytest

from envs import calvin_sequences as protocol
from envs.calvin import BENCHMARKS
from envs.process import SimulatorMissing, SimulatorProcess, interpreter_for

try:
    interpreter_for("calvin")
except SimulatorMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

PUSHES = {5: "push_blue_block_left", 7: "push_pink_block_right"}
STEP = 0.02


def process(renderer: str, simulator: str = "Traced") -> SimulatorProcess:
    row = dataclasses.replace(
        BENCHMARKS["calvin"],
        simulator=f"tests.envs.calvin_plain:{simulator}",
        simulator_args={"renderer": renderer, "views": ["gripper"]},
    )
    return SimulatorProcess(row, interpreter_for("calvin"))


def push(index: int) -> np.ndarray:
    """Actions that fulfil the first instruction of chain `index`, and keep pushing."""
    state, chain = protocol.sequence(index)
    assert chain[0] == PUSHES[index]
    _, colour, _, side = chain[0].split("_")
    robot, scene = protocol.initial_pose(state)
    block = scene[6:].reshape(3, 6)[protocol.COLOURS.index(colour), :3]
    away = np.array([0.09 if side == "left" else -0.09, 0, 0.005])
    through = np.array([-1.5 * away[0], 0, 0.005])
    points = [robot[:3], block + away + [0, 0, 0.075], block + away, block + through]
    return np.concatenate([line(a, b) for a, b in itertools.pairwise(points)])


def line(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    count = int(np.ceil(np.abs(end - start).max() / STEP))
    move = np.zeros((count, 7), np.float32)
    move[:, :3], move[:, 6] = (end - start) / count / STEP, -1
    return move


def play(simulator: SimulatorProcess, index: int, horizon: int = 10) -> list:
    """Every observation of an episode and what came with it, as bytes."""
    actions, first = push(index), simulator.reset("sequence", index, 0)
    seen, at, result = [(0, *fingerprint(first))], 0, None
    while at < len(actions):
        result = simulator.execute(actions[at : at + horizon])
        at += result.steps
        seen.append((at, *fingerprint(result.observation)))
    assert result.completed == 1
    return seen


def fingerprint(observation) -> tuple:
    views = observation.views["gripper"].tobytes()
    return observation.image.tobytes(), views, observation.state.tobytes(), observation.instruction


@pytest.fixture(scope="module", params=["tiny", "egl"])
def renderer(request):
    return request.param


@pytest.fixture(scope="module")
def simulator(renderer):
    with process(renderer) as one:
        yield one


def test_an_episode_after_others_equals_the_published_evaluators(simulator, renderer):
    """Theirs in a fresh process, drawing both cameras at every step."""
    play(simulator, 5)
    play(simulator, 7)
    play(simulator, 5)
    with process(renderer, "Plain") as plain:
        published = play(plain, 7)
    assert play(simulator, 7) == published


def test_frames_at_replans_equal_those_of_every_step(simulator):
    chunked = play(simulator, 5, horizon=10)
    every = {entry[0]: entry for entry in play(simulator, 5, horizon=1)[1:]}
    assert [every[entry[0]] for entry in chunked[1:]] == chunked[1:]


def test_the_oracle_sees_the_push_and_the_next_instruction_begins(simulator):
    seen = play(simulator, 5)
    instructions = [entry[-1] for entry in seen]
    assert instructions[0] == "go push the blue block left"
    assert instructions[-1] == "push the handle to close the drawer"
    assert any(entry[0] % 10 for entry in seen[1:-1]), "the chunk did not stop at the success"


def test_the_frame_is_a_picture(simulator):
    image = simulator.reset("sequence", 5, 0).image
    assert image.shape == (224, 224, 3)
    assert image.std() > 20


def test_the_fingerprint_names_commits_and_renderer(simulator, renderer):
    declared = simulator.fingerprint()
    assert len(declared["calvin_env"]) == len(declared["calvin"]) == 40
    assert ("TinyRenderer" in declared["renderer"]) == (renderer == "tiny")
