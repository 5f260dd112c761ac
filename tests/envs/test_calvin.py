"""CALVIN's protocol over a table without physics: when episodes, chunks and subtasks end."""

import numpy as np
import pytest

from envs import calvin_sequences as protocol
from envs.calvin import BENCHMARKS, SUBTASK_STEPS, Calvin

ROW = BENCHMARKS["calvin"]


class PaperTable:
    """Counts steps; the current subtask is solved at the totals listed in `solved_at`."""

    episodes_per_process = None

    def __init__(self, solved_at=()):
        self.solved_at, self.steps, self.actions, self.asked, self.looks = solved_at, 0, [], [], []

    def reset(self, robot, scene):
        self.steps, self.pose = 0, (robot, scene)

    def step(self, action):
        self.steps += 1
        self.actions.append(action)
        return self.info()

    def info(self):
        return {"steps": self.steps}

    def solved(self, subtask, start, now):
        self.asked.append((subtask, start["steps"]))
        return now["steps"] in self.solved_at

    def instruction(self, subtask):
        return subtask.replace("_", " ")

    def look(self, camera):
        self.looks.append((camera, self.steps))
        return np.full((200, 200, 3), self.steps % 256, np.uint8)

    def state(self):
        return np.arange(39.0)


def calvin(solved_at=(), **arguments):
    simulator = Calvin(ROW if not arguments else with_arguments(**arguments), PaperTable(solved_at))
    simulator.reset("sequence", 0, 0, False)
    return simulator


def with_arguments(**arguments):
    import dataclasses

    return dataclasses.replace(ROW, simulator_args=arguments)


def chunk(count, gripper=0.3):
    return np.full((count, 7), gripper, np.float32)


def run(simulator, horizon=10):
    results = [simulator.execute(chunk(horizon))]
    while not results[-1].done:
        results.append(simulator.execute(chunk(horizon)))
    return results


def test_the_row_is_the_papers():
    assert (ROW.trials, ROW.chunk, ROW.horizons) == (1000, 10, (10, 5, 1))
    assert (ROW.recipe.steps, ROW.recipe.batch, ROW.recipe.lr) == (30_000, 128, 2e-5)
    assert ROW.recipe.checkpoints == (10_000, 15_000, 20_000, 25_000, 30_000)
    assert ROW.step_limit("sequence") == 1800


def test_a_reset_starts_from_the_chains_pose_with_its_first_instruction():
    simulator = Calvin(ROW, PaperTable())
    observation = simulator.reset("sequence", 0, 0, False)
    assert observation.instruction == "rotate blue block right"
    assert observation.image.shape == (224, 224, 3)
    assert observation.views == {}
    assert observation.state is None
    robot, scene = protocol.initial_pose(protocol.sequence(0)[0])
    np.testing.assert_array_equal(simulator.table.pose[0], robot)
    np.testing.assert_array_equal(simulator.table.pose[1], scene)


def test_the_first_failure_ends_the_chain_after_360_steps():
    results = run(calvin())
    assert sum(r.steps for r in results) == SUBTASK_STEPS
    last = results[-1]
    assert (last.done, last.success, last.completed) == (True, False, 0)


def test_a_chunk_stops_where_an_instruction_is_fulfilled():
    simulator = calvin(solved_at=(13,))
    assert simulator.execute(chunk(10)).steps == 10
    result = simulator.execute(chunk(10))
    assert (result.steps, result.completed, result.done, result.success) == (3, 1, False, False)
    assert result.observation.instruction == "move slider right"
    assert simulator.table.steps == 13


def test_each_instruction_has_360_steps_and_its_own_start():
    simulator = calvin(solved_at=(13, 13 + SUBTASK_STEPS))
    results = run(simulator)
    assert results[-1].completed == 2
    assert simulator.table.steps == 13 + 2 * SUBTASK_STEPS
    starts = dict(simulator.table.asked)
    assert list(starts.values()) == [0, 13, 13 + SUBTASK_STEPS]


def test_five_instructions_are_a_success():
    result = run(calvin(solved_at=(5, 10, 15, 20, 25)))[-1]
    assert (result.done, result.success, result.success_any, result.success_last) == (True,) * 4
    assert result.completed == 5
    assert result.observation.instruction == "turn off lightbulb"


def test_frames_are_drawn_at_replans_only():
    simulator = calvin(solved_at=(13,))
    for _ in range(3):
        simulator.execute(chunk(10))
    assert simulator.table.looks == [("static", n) for n in (0, 10, 13, 23)]


def test_recording_keeps_every_frame_and_draws_none_twice():
    simulator = calvin()
    simulator.reset("sequence", 0, 0, True)
    simulator.table.looks.clear()
    result = simulator.execute(chunk(4))
    assert len(result.frames) == 4
    assert simulator.table.looks == [("static", n) for n in (1, 2, 3, 4)]
    np.testing.assert_array_equal(result.observation.image, result.frames[-1])


def test_views_and_state_come_when_they_are_asked_for():
    simulator = calvin(views=("gripper",), state=True, image_size=200)
    observation = simulator.execute(chunk(2)).observation
    assert observation.views["gripper"].shape == (200, 200, 3)
    assert observation.state.shape == (15,)


@pytest.mark.parametrize(("said", "done"), [(0.2, 1.0), (0.0, -1.0), (-0.7, -1.0)])
def test_the_gripper_is_exactly_open_or_closed(said, done):
    simulator = calvin()
    simulator.execute(chunk(1, gripper=said))
    action = simulator.table.actions[0]
    assert action.dtype == np.float32
    assert action[6] == done
    np.testing.assert_array_equal(action[:6], np.float32(said))


def test_an_episode_owes_nothing_to_the_one_before():
    simulator = calvin(solved_at=(13,))
    simulator.execute(chunk(20))
    simulator.reset("sequence", 0, 0, False)
    assert simulator.execute(chunk(10)).completed == 0
    assert simulator.table.asked[-1] == ("rotate_blue_block_right", 0)
