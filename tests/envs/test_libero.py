"""LIBERO in its own interpreter: short cuts equal plain code, episodes repeat bit for bit."""

import dataclasses
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from envs import libero
from envs.api import Benchmark
from envs.benchmarks import benchmark
from envs.process import SimulatorDied, SimulatorMissing, SimulatorProcess, interpreter_for

try:
    LIBERO = interpreter_for("libero")
    REASON = ""
except SimulatorMissing as missing:
    LIBERO, REASON = "", str(missing)

needs_libero = pytest.mark.skipif(not LIBERO, reason=REASON)
SMALL = 96
"""Pixels where only sameness matters: a frame's cost on a CPU is its pixels."""
HARD_CASES = [
    ("libero_object", 0),
    pytest.param("libero_10", 2, marks=pytest.mark.full),
    pytest.param("libero_goal", 7, marks=pytest.mark.full),
]


def row_of(suite: str, adapter: str, **args) -> Benchmark:
    row = benchmark(suite)
    return dataclasses.replace(
        row,
        simulator=f"tests.envs.libero_plain:{adapter}",
        simulator_args={**row.simulator_args, **args},
    )


def open_row(suite: str, adapter: str = "Traced", **args) -> SimulatorProcess:
    return SimulatorProcess(row_of(suite, adapter, **args), LIBERO)


def actions_of(seed: int, count: int) -> np.ndarray:
    """Chunks of 8 that hold a random direction; float32 [count, 7]."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-0.6, 0.6, (count // 8, 1, 7)).repeat(8, 1).reshape(count, 7)
    actions[:, 6] = np.where(actions[:, 6] < 0, -1, 1)
    return actions.astype(np.float32)


def play(process, task, initial_state, seed, actions, chunk=8, record=False):
    """The observations at each replan, and every frame that came."""
    seen = [process.reset(task, initial_state, seed, record=record)]
    frames = []
    for first in range(0, len(actions), chunk):
        result = process.execute(actions[first : first + chunk])
        seen.append(result.observation)
        frames += result.frames
    return seen, frames


def assert_same(one, other, images=True):
    assert len(one) == len(other)
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        assert np.array_equal(a.state, b.state), f"states differ at replan {step}"
        if images:
            assert np.array_equal(a.image, b.image), f"frames differ at replan {step}"


def test_rows_follow_the_protocol():
    row = benchmark("libero_10")
    assert (row.trials, row.chunk, row.horizons) == (50, 4, (4, 2, 1))
    limits = {name: row.step_limit(row.tasks[0]) for name, row in libero.BENCHMARKS.items()}
    assert limits == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }
    assert [len(row.tasks) for row in libero.BENCHMARKS.values()] == [10, 10, 10, 10, 90]
    assert row.recipe.checkpoints[-1] == row.recipe.steps == 50_000


@needs_libero
def test_two_processes_agree_whatever_came_before():
    """One of the two first plays other episodes of other tasks."""
    row = benchmark("libero_10")
    task, other = row.tasks[2], row.tasks[0]
    actions = actions_of(1, 24)

    def fresh():
        with open_row("libero_10", image_size=SMALL) as process:
            return play(process, task, 4, 9, actions)[0]

    def used():
        with open_row("libero_10", image_size=SMALL) as process:
            play(process, other, 1, 5, actions_of(2, 16))
            play(process, task, 8, 3, actions_of(3, 24))
            return play(process, task, 4, 9, actions)[0]

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(fresh), pool.submit(used)
        assert_same(one.result(), two.result())


@needs_libero
def test_frames_at_replans_are_those_of_rendering_every_step():
    """Also the recorded ones, and each is what LIBERO's own code gives after a hard reset."""
    task = benchmark("libero_object").tasks[0]
    actions = actions_of(4, 24)
    with open_row("libero_object") as ours, open_row("libero_object", "Plain") as plain:
        with ThreadPoolExecutor(2) as pool:
            expected = pool.submit(play, plain, task, 1, 7, actions)
            play(ours, task, 3, 11, actions_of(5, 16))
            seen, none = play(ours, task, 1, 7, actions)
            _, recorded = play(ours, task, 1, 7, actions, record=True)
        assert_same(seen, expected.result()[0])
        assert none == []
        assert np.array_equal(recorded, expected.result()[1])


@needs_libero
@pytest.mark.parametrize(("suite", "index"), HARD_CASES)
def test_cheap_resets_equal_hard_resets(suite, index):
    task = benchmark(suite).tasks[index]
    actions = actions_of(6, 56)
    with open_row(suite) as ours, open_row(suite, "Plain", render=False) as plain:
        with ThreadPoolExecutor(2) as pool:
            expected = pool.submit(play, plain, task, 1, 7, actions, 56)
            play(ours, task, 3, 11, actions_of(7, 40), 40)
            seen, _ = play(ours, task, 1, 7, actions, 56)
        assert_same(seen, expected.result()[0], images=False)


@pytest.mark.full
@needs_libero
def test_a_demonstration_is_an_episode_that_succeeds_again():
    """images[t] is what a policy sees before actions[t]."""
    row = row_of("libero_object", "Traced", image_size=SMALL)
    with SimulatorProcess(row, LIBERO) as process:
        scene = row.demonstrations_from + 3
        shown = process.demonstrate(row.tasks[0], scene, 0)
        assert shown.success
        assert shown.images.shape == (shown.steps, SMALL, SMALL, 3)
        assert shown.actions.shape == (shown.steps, 7)
        assert np.abs(shown.actions).max() <= 1
        seen = [process.reset(row.tasks[0], scene, 0).image]
        for first in range(0, shown.steps, row.chunk):
            result = process.execute(shown.actions[first : first + row.chunk])
            seen.append(result.observation.image)
        assert result.success and result.done
        assert np.array_equal(seen[:-1], shown.images[:: row.chunk])
        facts = process.fingerprint()
    assert facts["mujoco"] and facts["renderer"] and len(facts["assets"]) == 16


@needs_libero
def test_a_killed_episode_begun_again_equals_an_undisturbed_one():
    task = benchmark("libero_goal").tasks[7]
    actions = actions_of(8, 16)
    with open_row("libero_goal", image_size=SMALL) as process:
        expected, _ = play(process, task, 2, 1, actions)
        process.reset(task, 2, 1)
        process.execute(actions[:8])
        process._child.popen.kill()
        with pytest.raises(SimulatorDied, match="SIGKILL"):
            process.execute(actions[8:])
        assert_same(play(process, task, 2, 1, actions)[0], expected)


@needs_libero
@pytest.mark.full
def test_a_fault_of_any_kind_leaves_no_trace_in_the_episode_begun_again():
    """Killed in a reset, killed and stopped in a chunk; garbage on stdout needs no restart."""
    task, actions = benchmark("libero_object").tasks[1], actions_of(10, 16)
    with open_row("libero_object", image_size=SMALL) as process:
        expected, _ = play(process, task, 2, 1, actions)
        for fault, stage in [("SIGKILL", "reset"), ("SIGSTOP", "execute"), ("SIGSEGV", "execute")]:
            with pytest.raises(SimulatorDied, match="longer than" if "STOP" in fault else fault):
                disturbed(process, task, actions, getattr(signal, fault), stage)
            assert_same(play(process, task, 2, 1, actions)[0], expected)
    with open_row("libero_object", "Noisy", image_size=SMALL) as noisy:
        assert_same(play(noisy, task, 2, 1, actions)[0], expected)


def disturbed(process, task, actions, fault, stage):
    """The same episode, with a signal to the child in the middle of one call."""
    process.reset(task, 3, 1)
    pid = process._child.popen.pid
    timer = threading.Timer(0.03, os.kill, (pid, fault))
    if stage == "reset":
        timer.start()
    process.reset(task, 2, 1)
    process.execute(actions[:8])
    timer.start()
    process.execute(actions[8:], timeout=3)


@needs_libero
@pytest.mark.full
@pytest.mark.parametrize("suite", ["libero_10", "libero_goal", "libero_spatial"])
def test_every_task_resets_as_hard_resets_do(suite):
    actions = actions_of(9, 32)
    with open_row(suite) as ours:
        for task in benchmark(suite).tasks:
            play(ours, task, 3, 11, actions_of(7, 24), 24)
            seen, _ = play(ours, task, 1, 7, actions, 32)
            with open_row(suite, "Plain", render=False) as plain:
                assert_same(seen, play(plain, task, 1, 7, actions, 32)[0], images=False)


@needs_libero
@pytest.mark.full
def test_memory_stays_level_over_200_episodes():
    """Two tasks alternate every ten episodes, so that scenes are rebuilt too."""
    row = row_of("libero_object", "Traced", image_size=SMALL)
    sizes = []
    with SimulatorProcess(row, LIBERO) as process:
        for episode in range(200):
            process.reset(row.tasks[episode // 10 % 2], episode % 50, episode)
            for _ in range(5):
                process.execute(actions_of(episode, 8))
            sizes.append(process.rss_bytes())
    early, late = max(sizes[:20]), max(sizes[-20:])
    assert late <= 1.1 * early, f"{early / 1e6:.0f} MB grew to {late / 1e6:.0f} MB"
