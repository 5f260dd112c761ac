"""SimplerEnv as its published evaluator runs it: every camera at every step, gym's wrappers."""

from __future__ import annotations

import importlib

import numpy as np

from envs.api import Benchmark
from envs.simpler import Simpler
from envs.simpler_scene import CAMERA, Scene, prepare


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


class Plain(Simpler):
    def __init__(self, benchmark: Benchmark) -> None:
        super().__init__(benchmark, PlainScene)
