"""A simulator that keeps 40 MB more with every episode, slow ones, and one that raises."""

from __future__ import annotations

import time

import numpy as np

from envs import tabletop


class Leaky(tabletop.Tabletop):
    kept: list[np.ndarray] = []  # noqa: RUF012 shared on purpose: that is the leak

    def reset(self, task, initial_state, seed=0, record=False):
        self.kept.append(np.ones(5 << 20))
        return super().reset(task, initial_state, seed, record)


class Slow(tabletop.Tabletop):
    def execute(self, actions):
        time.sleep(0.2)
        return super().execute(actions)


class Raising(tabletop.Tabletop):
    def reset(self, task, initial_state, seed=0, record=False):
        raise RuntimeError("scene 7 is missing")


class Hanging(tabletop.Tabletop):
    def execute(self, actions):
        time.sleep(600)
        return super().execute(actions)
