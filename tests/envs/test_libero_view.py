"""Depth, segments and poses of real LIBERO scenes agree with each other and with the frame."""

from functools import lru_cache

import numpy as np
import pytest

from envs.benchmarks import benchmark
from envs.libero_view import spoken
from envs.process import SimulatorDied, SimulatorProcess
from tests.envs.test_libero import actions_of, needs_libero


@lru_cache(maxsize=1)
def seen():
    """A frame after some motion, the policy's own frame at that moment, and the snapshot."""
    row = benchmark("libero_object")
    with SimulatorProcess(row) as process:
        process.reset(row.tasks[0], 0, 0)
        result = process.execute(actions_of(0, 16))
        return result.observation.image, process.snapshot(), process.snapshot()


def world_points(snapshot, index):
    """Float [n, 3]: the surface points that the pixels of one thing show."""
    camera = snapshot.camera
    rows, columns = np.nonzero(snapshot.segments == index + 1)
    depth = snapshot.depth[rows, columns].astype(np.float64)
    right = (columns + 0.5 - camera.width / 2) / camera.focal * depth
    down = (rows + 0.5 - camera.height / 2) / camera.focal * depth
    axes, position = camera.pose[:3, :3], camera.pose[:3, 3]
    return np.stack([right, down, depth], 1) @ axes.T + position


@needs_libero
def test_the_frame_is_the_policys_and_the_same_twice():
    image, one, two = seen()
    assert np.array_equal(one.image, image) and np.array_equal(two.image, image)
    assert np.array_equal(one.depth, two.depth) and np.array_equal(one.segments, two.segments)
    assert (one.depth.dtype, one.segments.dtype, one.depth.shape) == (
        *(np.float32, np.int32),
        (224, 224),
    )


@needs_libero
def test_things_are_the_tasks_own():
    snapshot = seen()[1]
    names = {thing.name for thing in snapshot.things}
    assert {"alphabet soup", "basket", "robot gripper", "robot arm"} <= names
    counts = np.bincount(snapshot.segments.ravel(), minlength=len(snapshot.things) + 1)
    assert [thing.pixels for thing in snapshot.things] == counts[1:].tolist()


@needs_libero
def test_depth_back_projects_into_each_things_box_and_reaches_its_sides():
    snapshot = seen()[1]
    checked = 0
    for index, thing in enumerate(snapshot.things):
        points = world_points(snapshot, index)
        if len(points) < 100:
            continue
        low, high = thing.centre - thing.extent / 2, thing.centre + thing.extent / 2
        assert (points > low - 1e-3).all() and (points < high + 1e-3).all(), thing.name
        checked += 1
        if thing.pixels > 400 and thing.extent.max() < 0.3:
            # The camera looks down at it: its highest point is seen, to within a pixel.
            pixel = snapshot.depth[snapshot.segments == index + 1].mean() / snapshot.camera.focal
            assert high[2] - points[:, 2].max() < 1.5 * pixel, thing.name
    assert checked >= 6


@needs_libero
def test_a_can_is_as_large_as_a_can():
    can = next(thing for thing in seen()[1].things if thing.name == "alphabet soup")
    assert np.allclose(can.extent, [0.066, 0.066, 0.083], atol=0.02)


@needs_libero
def test_no_episode_no_snapshot():
    with (
        SimulatorProcess(benchmark("libero_object")) as process,
        pytest.raises(RuntimeError, match=r"call reset\(\) first"),
    ):
        process.snapshot()


def test_simulators_without_it_say_so():
    row = benchmark("tabletop")
    with SimulatorProcess(row) as process:
        process.reset("reach", 0, 0)
        with pytest.raises(SimulatorDied, match="tabletop does not show depth"):
            process.snapshot()


def test_names_are_spoken_without_their_numbers():
    assert spoken("akita_black_bowl_2") == "akita black bowl"
    assert spoken("wooden_two_layer_shelf_1_top") == "wooden two layer shelf 1 top"
