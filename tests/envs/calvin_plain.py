"""CALVIN as its published evaluator runs it, and ours with its whole state shown.

The published one draws both cameras at every step and resets as calvin_env does, which is right
only for the first episode of a process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from envs.api import Benchmark, Observation
from envs.calvin import Calvin
from envs.calvin_table import PlayTable


class Traced(Calvin):
    """Ours; observations carry robot and scene, all 39 numbers."""

    def _observe(self, image: np.ndarray | None = None) -> Observation:
        return dataclasses.replace(super()._observe(image), state=self.table.state())


class PlainTable(PlayTable):
    def __init__(self, fresh: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._fresh = fresh
        self._env.cameras = list(self._cameras.values())

    @property
    def episodes_per_process(self) -> int | None:
        return 1 if self._fresh else None

    def reset(self, robot: np.ndarray, scene: np.ndarray) -> None:
        self._obs = self._env.reset(robot_obs=robot, scene_obs=scene)

    def step(self, action: np.ndarray) -> Mapping[str, Any]:
        self._obs, _, _, info = self._env.step(action)
        return info

    def look(self, camera: str) -> np.ndarray:
        if not hasattr(self, "_obs"):
            return super().look(camera)
        return np.ascontiguousarray(self._obs["rgb_obs"][f"rgb_{camera}"], dtype=np.uint8)


class Plain(Traced):
    """`fresh`: a new process for each episode (yes); the published evaluator keeps one for all."""

    def __init__(self, benchmark: Benchmark) -> None:
        args = benchmark.simulator_args
        table = PlainTable(args.get("fresh", True), renderer=args.get("renderer", "auto"))
        super().__init__(benchmark, table)
