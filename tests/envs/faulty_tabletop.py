"""The tabletop in a process that breaks during an episode's first attempt, then works."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from envs.api import Benchmark, Observation, StepResult
from envs.tabletop import Tabletop

FAULTS = ("killed", "hangs", "prints garbage", "exits in reset", "hangs in reset")
AFTER = 3
"""Control steps after which an attempt breaks: in the middle of a chunk's work."""


def fault_of(initial_state: int) -> str:
    return FAULTS[initial_state % len(FAULTS)]


class Faulty(Tabletop):
    """`simulator_args`: folder, where it is remembered which episodes have been attempted."""

    def __init__(self, benchmark: Benchmark) -> None:
        super().__init__(benchmark)
        self.folder = Path(benchmark.simulator_args["folder"])

    def reset(
        self, task: str, initial_state: int, seed: int = 0, record: bool = False
    ) -> Observation:
        first = _create(self.folder / f"{task}-{initial_state}")
        self.fault = fault_of(initial_state) if first else ""
        if self.fault == "exits in reset":
            os.write(2, b"no such display\n")
            os._exit(7)
        if self.fault == "hangs in reset":
            time.sleep(600)
        return super().reset(task, initial_state, seed, record)

    def execute(self, actions: np.ndarray) -> StepResult:
        result = super().execute(actions)
        if self.steps >= AFTER:
            self._break()
        return result

    def _break(self) -> None:
        if self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hangs":
            time.sleep(600)
        if self.fault == "prints garbage":
            sys.stdout.write("\x00VLA1 garbage" * 10_000)
            sys.stdout.flush()


def _create(path: Path) -> bool:
    """Whether the file was not there before."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
