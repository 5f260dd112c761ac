"""Varied scenes of a benchmark to look at: sampled initial states, and the arm moved about."""

from __future__ import annotations

import dataclasses
from typing import Callable, Iterator, Mapping, Sequence, Tuple

import numpy as np

from envs.api import ACTION_DIM, Benchmark, Snapshot
from envs.process import SimulatorProcess

LONGEST = 60
"""Control steps that the arm moves at most."""
HELD = 10
"""Steps for which one random direction is kept: the arm gets somewhere."""


EXACT: Mapping[str, Mapping[str, str]] = {
    "calvin": {"renderer": "tiny", "scene": "calvin_scene_A"},
}
"""By simulator, what exact maps need; of CALVIN also a scene that policies train in, not D."""


def exact(benchmark: Benchmark) -> Benchmark:
    """The row with which snapshots of its simulator are exact."""
    args = {**benchmark.simulator_args, **EXACT.get(benchmark.simulator, {})}
    return dataclasses.replace(benchmark, simulator_args=args)


def scenes(
    process: SimulatorProcess, tasks: Sequence[str], count: int, seed: int = 0
) -> Iterator[Tuple[str, Callable[[], Snapshot]]]:
    """`count` scenes of each task by name, none of them one that policies are evaluated on.

    A scene depends on its task, its number and the seed alone, and is made when looked at.
    """
    for task in tasks:
        for number in range(count):
            yield _name(task, number), _Look(process, task, number, seed)


class _Look:
    def __init__(self, process: SimulatorProcess, task: str, number: int, seed: int) -> None:
        self.process, self.task, self.number, self.seed = process, task, number, seed

    def __call__(self) -> Snapshot:
        state = self.process.benchmark.demonstrations_from + self.number
        self.process.reset(self.task, state, self.seed)
        moves = _moves(np.random.default_rng([abs(self.seed), self.number]))
        moves = moves[: max(0, self.process.benchmark.step_limit(self.task) - 1)]
        if len(moves) and self.process.execute(moves).done:  # it happened to do the task
            self.process.reset(self.task, state, self.seed)
        return self.process.snapshot()


def _moves(rng: np.random.Generator) -> np.ndarray:
    """Float32 [0..LONGEST, 7]: a few random directions, each held, and an open or shut hand."""
    turns = rng.uniform(-0.6, 0.6, (int(rng.integers(0, LONGEST // HELD + 1)), ACTION_DIM))
    turns[:, -1] = np.where(turns[:, -1] < 0, -1, 1)
    return turns.repeat(HELD, axis=0).astype(np.float32)


def _name(task: str, number: int) -> str:
    return f"{task.lower()}-{number:04d}"
