"""SimplerEnv as its published evaluator runs it, and ours with its whole state shown.

The published one draws every camera at every step, through gym's wrappers.
"""

from __future__ import annotations

import dataclasses
import importlib

import numpy as np

from envs.api import Benchmark, Observation
from envs.simpler import Simpler
from envs.simpler_scene import CAMERA, Scene, prepare


class Traced(Simpler):
    """Ours; observations carry poses and velocities of everything that moves."""

    def _observe(self, image: np.ndarray | None = None) -> Observation:
        return dataclasses.replace(super()._observe(image), state=self.scene.state())


class PlainScene(Scene):
    def __init__(self, task: str) -> None:
        prepare()
        self._wrapped = importlib.import_module("simpler_env").make(task)
        self._env = self._wrapped.unwrapped

    def reset(self, episode: int, seed: int) -> None:
        options = {"obj_init_options": {"episode_id": episode}, "reconfigure": True}
        self._obs, _ = self._wrapped.reset(options=options)

    def step(self, action: np.ndarray) -> bool:
        self._obs, _, done, _, _ = self._wrapped.step(action)
        return bool(done)

    def look(self) -> np.ndarray:
        return np.asarray(self._obs["image"][CAMERA]["rgb"])


class Plain(Traced):
    def __init__(self, benchmark: Benchmark) -> None:
        super().__init__(benchmark, PlainScene)
