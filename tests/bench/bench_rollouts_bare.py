"""The limit: plain LIBERO loops in processes of their own, as many as the pool has."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from envs.api import Benchmark, as_json
from envs.process import interpreter_for

ROOT = Path(__file__).resolve().parents[2]
Share = list[tuple[str, int]]
"""Episodes of one process: (task, initial state)."""


class Rate(NamedTuple):
    """Control steps, and the seconds of wall and of processor time that they took."""

    steps: int
    wall_s: float
    cpu_s: float


def pooled(rates: Sequence[Rate]) -> Rate:
    """Several rounds as one."""
    return Rate(*(sum(column) for column in zip(*rates, strict=True)))


def processor_seconds(pid: int) -> float:
    """User and system time so far of a process and its children; 0 when it is gone."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in family)
    except psutil.NoSuchProcess:
        return 0.0


def prepared_environment() -> dict[str, str]:
    """What LIBERO and its renderer read from the environment, as our children set it."""
    code = (
        "import json, os; from envs import libero_install; libero_install.prepare(); "
        "print(json.dumps({n: os.environ[n] for n in ('MUJOCO_GL', 'LIBERO_CONFIG_PATH')}))"
    )
    answer = subprocess.run(
        [interpreter_for("libero"), "-c", code],
        cwd=ROOT,
        env=_plain_environment(),
        check=True,
        capture_output=True,
    )
    return {**os.environ, "OMP_NUM_THREADS": "1", **json.loads(answer.stdout)}


def _plain_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def shares(tasks: tuple[str, ...], trials: int, processes: int) -> list[Share]:
    """Every process takes each n-th episode, task after task, as a pool's free slots do."""
    episodes = [(task, state) for task in tasks for state in range(trials)]
    return [episodes[first::processes] for first in range(processes)]


class Loops:
    """Plain loops that stay up between measurements; use as a context manager."""

    def __init__(self, row: Benchmark, processes: int) -> None:
        self.row = row
        self.running = [_start(row) for _ in range(processes)]

    def __enter__(self) -> Loops:
        for process in self.running:
            self._read(process, lambda line: line.strip() == "READY")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.kill()
            process.wait()

    def measure(self, trials: int, horizon: int) -> Rate:
        """All together, started at the same moment."""
        before = sum(processor_seconds(process.pid) for process in self.running)
        parts = shares(self.row.tasks, trials, len(self.running))
        for process, share in zip(self.running, parts, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps({"episodes": share, "horizon": horizon}) + "\n")
            process.stdin.flush()
        answers = [
            json.loads(self._read(process, lambda line: line.startswith("{")))
            for process in self.running
        ]
        spent = sum(processor_seconds(process.pid) for process in self.running) - before
        steps = sum(answer["steps"] for answer in answers)
        return Rate(steps, max(answer["seconds"] for answer in answers), spent)

    def _read(self, process: subprocess.Popen[str], wanted: Callable[[str], bool]) -> str:
        """The next line that is wanted: simulators print what they like."""
        assert process.stdout is not None
        for line in process.stdout:
            if wanted(line):
                return line
        raise RuntimeError("a bare LIBERO loop ended early: see its output above")


def _start(row: Benchmark) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            interpreter_for(row.simulator),
            "-m",
            "tests.bench.bench_rollouts_loop",
            json.dumps(as_json(row)),
        ],
        cwd=ROOT,
        env=_plain_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
