"""SimplerEnv's protocol over a scene without physics: actions, gripper rules, both successes."""

import dataclasses

import numpy as np
import pytest

from envs.benchmarks import evaluated
from envs.simpler import (
    BENCHMARKS,
    INSTRUCTIONS,
    LONG_TASK,
    Gripper,
    Simpler,
    axis_angle,
    wrong_instruction,
)
from envs.simpler_scene import _displaced

ROW = BENCHMARKS["simpler"]
TASK = "widowx_stack_cube"


class PaperScene:
    """Counts steps; the task is fulfilled at the steps in `solved_at`."""

    solved_at: tuple = ()

    def __init__(self, task):
        self.task, self.actions, self.looks, self.closed = task, [], 0, False

    def reset(self, episode, seed):
        self.actions, self.looks = [], 0

    def step(self, action):
        self.actions.append(action)
        return len(self.actions) in self.solved_at

    def look(self):
        self.looks += 1
        return np.full((480, 640, 3), len(self.actions), np.uint8)

    def instruction(self):
        return self.task

    def joints(self):
        return np.arange(8.0)

    def close(self):
        self.closed = True


def simpler(solved_at=(), task=TASK, row=ROW):
    scene = type("Solved", (PaperScene,), {"solved_at": solved_at})
    simulator = Simpler(row, scene)
    simulator.reset(task, 0, 0, False)
    return simulator


def run(simulator, horizon=4):
    results = [simulator.execute(np.zeros((horizon, 7), np.float32))]
    while not results[-1].done:
        results.append(simulator.execute(np.zeros((horizon, 7), np.float32)))
    return results


def by_matrices(roll, pitch, yaw):
    """Rz @ Ry @ Rx, the convention of the published evaluators ("sxyz")."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return z @ y @ x


def by_rodrigues(vector):
    angle = np.linalg.norm(vector)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def test_the_row_is_the_papers():
    assert (len(ROW.tasks), ROW.trials, ROW.chunk, ROW.horizons) == (4, 24, 4, (4, 2, 1))
    assert [ROW.step_limit(task) for task in ROW.tasks] == [60, 120, 60, 60]
    assert (ROW.recipe.steps, ROW.recipe.batch, ROW.recipe.lr) == (50_000, 512, 5e-5)
    assert len(ROW.recipe.checkpoints) == 10
    assert ROW.recipe.checkpoints[-1] == 50_000


@pytest.mark.parametrize("scale", [1e-6, 0.05, 0.6, 1.5])
def test_axis_angle_turns_as_the_euler_angles_do(scale):
    for euler in np.random.default_rng(0).uniform(-scale, scale, (50, 3)):
        np.testing.assert_allclose(by_rodrigues(axis_angle(euler)), by_matrices(*euler), atol=1e-12)


def test_axis_angle_of_one_axis_and_of_none():
    np.testing.assert_array_equal(axis_angle(np.zeros(3)), np.zeros(3))
    for axis in np.eye(3):
        np.testing.assert_allclose(axis_angle(0.3 * axis), 0.3 * axis, atol=1e-15)


def test_actions_reach_the_scene_in_its_units():
    simulator = simpler()
    simulator.execute(np.array([[0.01, -0.02, 0.03, 0.1, 0, 0, -1]], np.float32))
    action = simulator.scene.actions[0]
    np.testing.assert_allclose(action, [0.01, -0.02, 0.03, 0.1, 0, 0, -1], atol=1e-8)


@pytest.mark.parametrize(
    ("rule", "commands"),
    [("threshold", [1, -1, 1, 1, 1, -1]), ("two_consecutive", [-1, -1, -1, 1, 1, -1])],
)
def test_gripper_rules(rule, commands):
    gripper = Gripper(rule)
    values = [0.2, -0.1, 0.9, 0.4, 0.1, 0.0]
    assert [gripper.command(value) for value in values] == commands


def test_an_episode_starts_with_a_gripper_that_remembers_nothing():
    simulator = simpler(row=evaluated(ROW, "official"))
    simulator.execute(np.ones((1, 7), np.float32))
    simulator.reset(TASK, 1, 0, False)
    simulator.execute(np.ones((2, 7), np.float32))
    assert [action[6] for action in simulator.scene.actions] == [-1, 1]


def test_both_success_rules_are_recorded():
    last = run(simpler(solved_at=(10, 11)))[-1]
    assert (last.success_any, last.success_last, last.success) == (True, False, True)
    last = run(simpler(solved_at=(60,)))[-1]
    assert (last.success_any, last.success_last, last.success) == (True, True, True)


def test_the_official_rule_judges_the_last_step():
    row = evaluated(ROW, "official")
    last = run(simpler(solved_at=(10, 11), row=row))[-1]
    assert (last.success_any, last.success_last, last.success) == (True, False, False)
    assert evaluated(ROW, "paper") is ROW
    kept = dataclasses.replace(ROW, simulator_args={"state": True})
    assert evaluated(kept, "official").simulator_args == {
        "state": True,
        "gripper": "two_consecutive",
    }


@pytest.mark.parametrize(("task", "limit"), [(TASK, 60), (LONG_TASK, 120)])
def test_episodes_run_to_their_limit(task, limit):
    results = run(simpler(solved_at=(10,), task=task), horizon=7)
    assert sum(result.steps for result in results) == limit


def test_frames_are_drawn_at_replans_only():
    simulator = simpler()
    for _ in range(3):
        simulator.execute(np.zeros((4, 7), np.float32))
    assert simulator.scene.looks == 4


def test_recording_keeps_every_frame_and_draws_none_twice():
    simulator = simpler()
    simulator.reset(TASK, 0, 0, True)
    result = simulator.execute(np.zeros((4, 7), np.float32))
    assert len(result.frames) == 4
    assert simulator.scene.looks == 5
    assert result.observation.image.shape == (224, 224, 3)


def test_another_task_closes_the_scene_before_it_makes_one():
    simulator = simpler()
    first = simulator.scene
    simulator.reset(TASK, 1, 0, False)
    assert simulator.scene is first
    assert simulator.reset(LONG_TASK, 0, 0, False).instruction == LONG_TASK
    assert first.closed


def test_joints_come_when_they_are_asked_for():
    assert simpler().reset(TASK, 0, 0, False).state is None
    simulator = simpler(row=dataclasses.replace(ROW, simulator_args={"state": True}))
    assert simulator.reset(TASK, 0, 0, False).state.shape == (8,)


def test_what_it_cannot_do_is_an_error():
    with pytest.raises(ValueError, match="cannot do views"):
        simpler(row=dataclasses.replace(ROW, simulator_args={"views": ["wrist"]}))
    with pytest.raises(ValueError, match="cannot do sometimes"):
        simpler(row=dataclasses.replace(ROW, success_rule="sometimes"))
    with pytest.raises(ValueError, match="gripper rule 'sticky'"):
        simpler(row=dataclasses.replace(ROW, simulator_args={"gripper": "sticky"}))


def test_a_wrong_instruction_is_another_tasks():
    for task, own in INSTRUCTIONS.items():
        assert {wrong_instruction(task, i) for i in range(3)} == {*INSTRUCTIONS.values()} - {own}


def test_variations_move_only_the_object_to_be_moved():
    placement = np.array([[-0.1, 0.2], [0.3, 0.4]])
    np.testing.assert_array_equal(_displaced(placement, 23), placement)
    varied = _displaced(placement, 24)
    np.testing.assert_array_equal(varied[1], placement[1])
    assert 0 < np.abs(varied[0] - placement[0]).max() <= 0.01
    np.testing.assert_array_equal(_displaced(placement, 24), varied)
    assert (_displaced(placement, 48) != varied).any()
