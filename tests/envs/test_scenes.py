"""Scenes to look at never run past their episode's end."""

import dataclasses

import numpy as np

from envs.api import Camera, Snapshot
from envs.process import SimulatorProcess
from envs.scenes import LONGEST, scenes
from tests.envs.fake_simulator import ROW, Fake

LOOKED_AT = dataclasses.replace(ROW, simulator="tests.envs.test_scenes:Seen", tasks=("a", "done"))


class Seen(Fake):
    """Its snapshots' depth is how many steps the arm moved; the task "done" is done at once."""

    def __init__(self, benchmark):
        self.benchmark = benchmark

    def execute(self, actions):
        result = super().execute(actions)
        return dataclasses.replace(result, done=True) if self.task == "done" else result

    def snapshot(self):
        image = self._look(0).image
        depth = np.full(image.shape[:2], self.steps, np.float32)
        camera = Camera(1.0, image.shape[1], image.shape[0], np.eye(4))
        return Snapshot(image, depth, np.zeros(depth.shape, np.int32), camera, ())


def test_the_arm_stops_before_the_episode_does():
    assert LOOKED_AT.step_limit("a") < LONGEST
    with SimulatorProcess(LOOKED_AT) as process:
        moved = [look().depth[0, 0] for _, look in scenes(process, ["a"], 8)]
        assert max(moved) == LOOKED_AT.step_limit("a") - 1
        still = [look().depth[0, 0] for _, look in scenes(process, ["done"], 4)]
        assert set(still) == {0}
