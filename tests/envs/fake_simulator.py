"""A simulator that misbehaves on request; its task is the fault."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time

import numpy as np

from envs.api import ActionSpec, Benchmark, Observation, StepResult, TrainingRecipe

TASKS = (
    "count",
    "hang in reset",
    "exit in reset",
    "segfault",
    "raise",
    "garbage",
    "hang",
    "killed",
    "wrong dtype",
    "grey",
)

ROW = Benchmark(
    name="fake",
    simulator="tests.envs.fake_simulator:Fake",
    tasks=TASKS,
    trials=1,
    chunk=4,
    horizons=(4, 2, 1),
    step_limits={"*": 10},
    action_spec=ActionSpec(1.0, "euler", 1.0, 1),
    recipe=TrainingRecipe(1, 1, 1e-4, (1,)),
    dataset="none",
)


class Fake:
    """Counts steps into its image; the other tasks fail in the way they are named."""

    def __init__(self, benchmark: Benchmark) -> None:
        assert dataclasses.replace(benchmark, tasks=TASKS, simulator_args={}) == ROW
        self.episodes_per_process = benchmark.simulator_args.get("episodes_per_process")
        self.benchmark = benchmark

    def reset(self, task, initial_state, seed, record):
        self.task, self.steps, self.record = task, 0, record
        if task == "hang in reset":
            time.sleep(600)
        if task == "exit in reset":
            os.write(2, b"no such display\n")
            os._exit(7)
        return self._look(seed + initial_state)

    def _look(self, value):
        dtype = np.float16 if self.task == "wrong dtype" else np.uint8
        ramp = (np.arange(0, 160, 20)[:, None, None] + value) % 256
        image = np.tile(ramp, (1, 8, 3)).astype(dtype)
        return Observation(image[..., 0] if self.task == "grey" else image, f"count {value}")

    def execute(self, actions):
        fault = getattr(self, "_" + self.task, None)
        if fault:
            fault()
        steps = min(len(actions), self.benchmark.step_limit(self.task) - self.steps)
        self.steps += steps
        frames = tuple(self._look(i).image for i in range(steps)) if self.record else ()
        done = np.bool_(self.steps >= self.benchmark.step_limit(self.task))
        observation = self._look(self.steps + int(actions.sum()))
        return StepResult(observation, done, done, done, done, steps, frames)

    def _segfault(self):
        os.kill(os.getpid(), signal.SIGSEGV)

    def _killed(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def _raise(self):
        raise ZeroDivisionError("the arm left the table")

    def _garbage(self):
        sys.stdout.write("\x00VLA1 garbage" * 100_000)
        sys.stdout.flush()
        os.write(2, b"\xff\xfe" * 10_000)

    def _hang(self):
        time.sleep(600)

    def fingerprint(self):
        return {"fake": "1", "missing": self.benchmark.simulator_args.get("missing", "none")}

    def close(self):
        pass
