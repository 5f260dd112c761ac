import numpy as np
import pytest

from envs import tabletop
from envs.benchmarks import benchmark
from envs.experts import tabletop as expert

ROW = benchmark("tabletop")


def play(task, state, chunk=2, record=False):
    """One expert episode through the Simulator interface; returns results."""
    simulator = tabletop.Tabletop(ROW)
    results = [simulator.reset(task, state, 0, record)]
    while True:
        actions = np.stack([expert.act(task, simulator.scene)] * chunk)
        results.append(simulator.execute(actions))
        if results[-1].done:
            return results


@pytest.mark.parametrize("task", tabletop.TASKS)
def test_expert_solves_at_least_95_percent(task):
    wins = 0
    for state in range(200):
        scene = tabletop.sample_scene(task, state)
        start = scene.block().copy()
        for _ in range(tabletop.STEP_LIMIT):
            tabletop.advance(scene, expert.act(task, scene))
            if tabletop.succeeded(task, scene, start):
                wins += 1
                break
    assert wins >= 190


@pytest.mark.parametrize("task", tabletop.TASKS)
def test_episodes_are_functions_of_their_initial_state(task):
    first, second = play(task, 3), play(task, 3)
    assert len(first) == len(second)
    frames = [
        (a.observation.image, b.observation.image)
        for a, b in zip(first[1:], second[1:], strict=True)
    ]
    assert all(np.array_equal(a, b) for a, b in frames)
    assert not np.array_equal(first[0].image, play(task, 4)[0].image)


def test_frames_at_replans_equal_those_of_every_step():
    chunked, recorded = play("reach", 5, chunk=4), play("reach", 5, chunk=4, record=True)
    for lazy, every in zip(chunked[1:], recorded[1:], strict=True):
        assert np.array_equal(lazy.observation.image, every.frames[-1])
        assert len(every.frames) == every.steps


def test_a_chunk_stops_at_the_step_limit():
    simulator = tabletop.Tabletop(ROW)
    simulator.reset("reach", 0)
    away = np.zeros((25, 7), np.float32)
    assert not simulator.execute(away).done
    last = simulator.execute(away)
    assert last.done
    assert not last.success
    assert last.steps == tabletop.STEP_LIMIT - 25


def test_wrong_instruction_names_another_block_of_the_scene():
    for state in range(50):
        scene = tabletop.sample_scene("reach", state)
        wrong = tabletop.wrong_instruction("reach", state)
        named = [colour for colour in scene.colours if f" {colour} " in wrong]
        assert len(named) == 1
        assert named[0] != scene.colours[scene.target]


def test_push_needs_contact_and_place_needs_release():
    scene = tabletop.sample_scene("pick-and-place", 1)
    start = scene.block().copy()
    scene.blocks[scene.target, 1] = 0.03
    scene.held = scene.target
    assert not tabletop.succeeded("pick-and-place", scene, start)
    scene.held = None
    assert tabletop.succeeded("pick-and-place", scene, start)
    assert not tabletop.succeeded("push", scene, start)


def test_demonstrations_pair_each_frame_with_the_action_taken_from_it():
    demo = tabletop.Tabletop(ROW).demonstrate("reach", tabletop.DEMONSTRATIONS_FROM, 0)
    assert demo.success
    assert len(demo.images) == len(demo.actions) == demo.steps
    scene = tabletop.sample_scene("reach", tabletop.DEMONSTRATIONS_FROM)
    assert np.array_equal(demo.images[0], tabletop.render(scene))
    assert np.array_equal(demo.actions[0], expert.act("reach", scene))


def test_unknown_task_is_named():
    with pytest.raises(ValueError, match="no task 'rech'"):
        tabletop.Tabletop(ROW).reset("rech", 0)
