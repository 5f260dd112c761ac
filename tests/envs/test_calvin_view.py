"""Depth, segments and poses of real CALVIN scenes agree with each other and with the frame."""

import dataclasses

import numpy as np
import pytest

from envs.benchmarks import benchmark
from envs.process import SimulatorDied, SimulatorMissing, SimulatorProcess, interpreter_for
from envs.scenes import exact, scenes
from tests.envs.test_libero_view import world_points

try:
    interpreter_for("calvin")
except SimulatorMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)


@pytest.fixture(scope="module")
def seen():
    row = exact(benchmark("calvin"))
    with SimulatorProcess(row) as process:
        return [look() for _, look in scenes(process, row.tasks, 2)]


def test_depth_back_projects_into_each_things_box(seen):
    checked = set()
    for snapshot in seen:
        assert snapshot.image.shape == (224, 224, 3)
        assert snapshot.depth.shape == snapshot.segments.shape == (224, 224)
        for index, thing in enumerate(snapshot.things):
            points = world_points(snapshot, index)
            assert len(points) == thing.pixels
            low, high = thing.centre - thing.extent / 2, thing.centre + thing.extent / 2
            assert (points > low - 1e-3).all() and (points < high + 1e-3).all(), thing.name
            if thing.pixels > 100:
                checked.add(thing.name)
    assert {"drawer", "sliding door", "led"} <= checked


def test_segments_lie_where_the_frame_shows_them(seen):
    """Blocks have colours of their own, and nothing else in the scene is as blue or as red."""
    for snapshot in seen:
        for index, thing in enumerate(snapshot.things, 1):
            shown = snapshot.image[snapshot.segments == index].astype(int)
            if thing.name == "blue block" and len(shown) > 100:
                assert (shown[:, 2] > shown[:, 0] + 20).mean() > 0.8
            if thing.name == "red block" and len(shown) > 100:
                assert (shown[:, 0] > shown[:, 2] + 20).mean() > 0.8


def test_blocks_have_the_sizes_of_their_boxes(seen):
    volumes = {thing.name: np.prod(thing.extent) for thing in seen[0].things}
    blocks = {name: volume for name, volume in volumes.items() if name.endswith("block")}
    assert set(blocks) == {"red block", "blue block", "pink block"}
    # 4 cm cubes, or longer; turned on the table a box encloses up to twice as much.
    assert all(0.99 * 0.04**3 < volume < 2.1 * 0.04**2 * 0.08 for volume in blocks.values())


def test_with_egl_the_error_says_what_to_open():
    row = benchmark("calvin")
    row = dataclasses.replace(row, simulator_args={"renderer": "egl"})
    with SimulatorProcess(row) as process:
        process.reset(row.tasks[0], 0, 0)
        with pytest.raises(SimulatorDied, match="open CALVIN with renderer 'tiny'"):
            process.snapshot()
