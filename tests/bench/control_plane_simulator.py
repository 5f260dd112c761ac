"""A simulated environment for the control plane's benchmark: it waits instead of simulating.

Everything around it is real: a child process of its own, 224-pixel frames of noise, the pipe.
An episode succeeds only if each chunk answers exactly the frame that was sent last.
"""

from __future__ import annotations

import time

import numpy as np

from envs.api import ActionSpec, Benchmark, Observation, StepResult, TrainingRecipe

SIDE = 224
CHUNK = 4
CHUNK_S = 1.0
CHUNKS = 20
TASKS = ("start", "wait")
"""`start` is one chunk long: it brings a child up before anything is timed."""

ROW = Benchmark(
    name="control_plane",
    simulator="tests.bench.control_plane_simulator:Waiting",
    tasks=TASKS,
    trials=1,
    chunk=CHUNK,
    horizons=(CHUNK,),
    step_limits={"start": CHUNK, "wait": CHUNK * CHUNKS},
    action_spec=ActionSpec(1.0, "euler", 1.0, 1),
    recipe=TrainingRecipe(1, 1, 1e-4, (1,)),
    dataset="none",
)


def answer_to(image: np.ndarray) -> np.ndarray:
    """The chunk float32 [CHUNK, 7] that belongs to a frame: some of its pixels."""
    picked = image[:: SIDE // CHUNK, ::32, 0][:CHUNK, :7]
    return picked.astype(np.float32) / 255


class Waiting:
    """One environment whose chunks take CHUNK_S seconds of waiting each."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark

    def reset(self, task: str, initial_state: int, seed: int, record: bool) -> Observation:
        self.task, self.steps, self.right = task, 0, True
        self.noise = np.random.default_rng([seed, initial_state])
        return self._look()

    def execute(self, actions: np.ndarray) -> StepResult:
        over = time.monotonic() + CHUNK_S
        self.right = self.right and bool(np.array_equal(actions, answer_to(self.frame)))
        self.steps += len(actions)
        done = self.steps >= self.benchmark.step_limit(self.task)
        seen = self._look()
        time.sleep(max(0.0, over - time.monotonic()))
        won = done and self.right
        return StepResult(seen, done, won, won, won, len(actions))

    def _look(self) -> Observation:
        self.frame = self.noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        return Observation(self.frame, "wait for the chunk to be over")

    def fingerprint(self) -> dict[str, str]:
        return {"control_plane": "1"}

    def close(self) -> None:
        pass
