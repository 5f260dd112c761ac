"""LIBERO as the usual evaluators run it, and ours with its whole state shown.

Both run in LIBERO's interpreter. The plain one compiles at every reset and renders every step.
"""

from __future__ import annotations

import dataclasses
import os
import sys

import numpy as np

from envs import libero_install
from envs.api import Observation, StepResult
from envs.libero import CAMERA, Libero
from envs.libero_scene import SETTLE_ACTION, SETTLE_STEPS


class Traced(Libero):
    """Ours; observations carry the simulator's whole state in place of proprioception."""

    def _look(self):
        return dataclasses.replace(super()._look(), state=self.scene.state())


class Unseen(Libero):
    """Ours; demonstrations come without pictures, for who only counts successes."""

    def _replay(self, task, initial_state, seed, actions):
        return []


class Noisy(Traced):
    """Ours, in a process that prints what a driver or a library might."""

    def reset(self, task, initial_state, seed, record):
        _print_garbage()
        return super().reset(task, initial_state, seed, record)

    def execute(self, actions):
        _print_garbage()
        return super().execute(actions)


def _print_garbage():
    sys.stdout.write("\x00VLA1 garbage" * 50_000)
    sys.stdout.flush()
    os.write(2, b"\xff\xfe" * 10_000)


class Plain:
    """Construct, seed, hard reset, step and render with LIBERO's own code alone.

    `fresh`: a new environment for each episode, so that none depends on those before it.
    `cameras`: which are drawn; the first is what is seen.
    `render`: whether cameras are drawn; the states do not depend on it.
    """

    def __init__(self, benchmark):
        libero_install.prepare()
        self.benchmark = benchmark
        self.fresh = benchmark.simulator_args.get("fresh", True)
        self.render = benchmark.simulator_args.get("render", True)
        self.cameras = benchmark.simulator_args.get("cameras", [CAMERA])
        self.suite = libero_install.suite(benchmark.simulator_args["suite"])
        self.env = None

    def reset(self, task, initial_state, seed, record):
        index = [each.name for each in self.suite.tasks].index(task)
        self.task = self.suite.get_task(index)
        if self.fresh or self.env is None:
            self.close()
            self._construct()
        self.env.seed(seed)
        self.env.reset()
        self.raw = self.env.set_init_state(
            libero_install.initial_states(self.suite, index)[initial_state]
        )
        for _ in range(SETTLE_STEPS):
            self.raw = self.env.step(list(SETTLE_ACTION))[0]
        self.steps = 0
        return self._look()

    def _construct(self):
        from libero.libero.envs.env_wrapper import ControlEnv

        self.env = ControlEnv(
            has_renderer=False,
            has_offscreen_renderer=self.render,
            use_camera_obs=self.render,
            bddl_file_name=libero_install.bddl_path(self.task),
            camera_names=self.cameras,
            camera_heights=224,
            camera_widths=224,
        )

    def execute(self, actions):
        frames, success = [], False
        for action in actions:
            self.raw, _, success, _ = self.env.step(action.tolist())
            frames.append(self._look().image)
            if success:
                break
        self.steps += len(frames)
        done = bool(success) or self.steps >= self.benchmark.step_limit("*")
        return StepResult(self._look(), done, success, success, success, len(frames), tuple(frames))

    def _look(self):
        raw = self.raw.get(f"{CAMERA}_image", np.zeros((1, 1, 3), np.uint8))
        image = np.ascontiguousarray(raw[::-1, ::-1])
        return Observation(image, self.task.language, state=self.env.get_sim_state())

    def fingerprint(self):
        return libero_install.versions()

    def close(self):
        if self.env is not None:
            self.env.close()
        self.env = None
