"""The supervisor of one simulator: starts its child, talks to it, kills it, says why it died."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Mapping, Optional, TypeVar

import numpy as np

from envs import wire
from envs.api import (
    ACTION_DIM,
    Benchmark,
    Demonstration,
    Observation,
    Snapshot,
    StepResult,
    as_json,
    did_you_mean,
)
from envs.child import ROOT, Child, SimulatorDied, SimulatorMissing
from envs.home import home
from envs.wire import Message

__all__ = [
    "SimulatorDied",
    "SimulatorMissing",
    "SimulatorProcess",
    "interpreter_for",
    "on_device",
    "require_interpreters",
]

log = logging.getLogger(__name__)
T = TypeVar("T")

EMBEDDED = ("tabletop",)
"""Simulators that need no interpreter of their own."""

START_TIMEOUT = 300.0
RESET_TIMEOUT = 300.0
EXECUTE_TIMEOUT = 120.0
DEMONSTRATE_TIMEOUT = 900.0


def python_variable(simulator: str) -> str:
    """The environment variable that names its Python."""
    return f"VLA_{simulator.upper()}_PYTHON"


def interpreter_for(simulator: str) -> str:
    """The Python that runs a simulator: VLA_<NAME>_PYTHON, else its environment under `home()`."""
    configured = os.environ.get(python_variable(simulator))
    if not configured and (simulator in EMBEDDED or ":" in simulator):
        return sys.executable
    path = configured or str(home() / "simulators" / simulator / "bin" / "python")
    if not os.access(path, os.X_OK):
        raise SimulatorMissing(
            f"No interpreter for simulator {simulator!r} at {path}: {build_command(simulator)}."
        )
    return path


def build_command(simulator: str) -> str:
    """How to get a simulator's interpreter: Make has a target for each list of packages."""
    listed = f"infra/simulators/requirements-{simulator}.txt"
    first = "" if (ROOT / listed).exists() else f"list its packages in {listed}, then "
    named = python_variable(simulator)
    return f"{first}run `make {simulator}`, or name a Python that has them: {named}=PATH"


def require_interpreters(simulators: Iterable[str]) -> None:
    """SimulatorMissing that names all that have no interpreter here, each with its remedy."""
    missing = []
    for simulator in dict.fromkeys(simulators):
        try:
            interpreter_for(simulator)
        except SimulatorMissing as error:
            missing.append(str(error))
    if missing:
        raise SimulatorMissing(" ".join(missing))


def on_device(index: int) -> Dict[str, str]:
    """The `env` that puts a child's rendering on one GPU, whatever its simulator renders with."""
    names = ("CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID", "EGL_VISIBLE_DEVICES")
    return {name: str(index) for name in names}


class SimulatorProcess:
    """One simulator child, (re)started when needed. Use each object from one thread at a time.

    Every failure of the child (crash, exception, silence past a deadline) kills it and raises
    SimulatorDied; the next `reset` starts a new one. `env` is added to the child's environment,
    such as `on_device(1)`.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        interpreter: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
    ) -> None:
        self.benchmark = benchmark
        self._interpreter = interpreter
        self._env = dict(env or {})
        self._child: Optional[Child] = None
        self._episodes = 0
        self._episode_limit: Optional[int] = None
        self._running = False

    def reset(
        self,
        task: str,
        initial_state: int,
        seed: int,
        record: bool = False,
        timeout: float = RESET_TIMEOUT,
    ) -> Observation:
        """Begin an episode; `record` keeps every step's frame. Starting may add START_TIMEOUT."""
        episode = self._episode(task, initial_state, seed)
        asked = Message("reset", {**episode, "record": record})
        first = self._call(asked, "observation", timeout, wire.observation_of)
        self._running = True
        return first

    def execute(self, actions: np.ndarray, timeout: float = EXECUTE_TIMEOUT) -> StepResult:
        """Run actions float32 [k, 7]; stops early at success or the step limit."""
        actions = np.asarray(actions, np.float32)
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0:
            raise ValueError(f"actions have shape {actions.shape}; expected [k >= 1, {ACTION_DIM}]")
        if not self._running:
            raise RuntimeError("execute() without an episode in progress: call reset() first")
        asked = Message("execute", {}, {"actions": actions})
        result = self._call(asked, "step", timeout, wire.step_of)
        self._running = not result.done
        return result

    def demonstrate(
        self, task: str, initial_state: int, seed: int, timeout: float = DEMONSTRATE_TIMEOUT
    ) -> Demonstration:
        """One episode of the simulator's scripted expert."""
        episode = self._episode(task, initial_state, seed)
        asked = Message("demonstrate", episode)
        return self._call(asked, "demonstration", timeout, wire.demonstration_of)

    def snapshot(self, timeout: float = EXECUTE_TIMEOUT) -> Snapshot:
        """The current frame of the episode in progress with its depth, segments and poses."""
        if not self._running:
            raise RuntimeError("snapshot() without an episode in progress: call reset() first")
        return self._call(Message("snapshot"), "snapshot", timeout, wire.snapshot_of)

    def fingerprint(self, timeout: float = RESET_TIMEOUT) -> Dict[str, str]:
        """Package versions, renderer and assets hash of the environment the child runs in."""
        return self._call(Message("fingerprint"), "fingerprint", timeout, _fingerprint)

    def rss_bytes(self) -> int:
        """Resident memory of the child; 0 when none runs."""
        if self._child is None:
            return 0
        try:
            pages = Path(f"/proc/{self._child.popen.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """End the child in an orderly way; killed when it takes longer than CLOSE_TIMEOUT."""
        child, self._child, self._running = self._child, None, False
        if child is not None:
            child.close()

    def kill(self) -> None:
        """End the child at once. It holds nothing that needs saving."""
        child, self._child, self._running = self._child, None, False
        if child is not None:
            child.kill()

    def __enter__(self) -> SimulatorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _episode(self, task: str, initial_state: int, seed: int) -> Dict[str, Any]:
        if task not in self.benchmark.tasks:
            raise did_you_mean(f"task of {self.benchmark.name}", task, self.benchmark.tasks)
        self._running = False
        if self._episode_limit is not None and self._episodes >= self._episode_limit:
            self.close()
        self._ensure_started()
        self._episodes += 1
        return {"task": task, "initial_state": int(initial_state), "seed": int(seed)}

    def _ensure_started(self) -> None:
        if self._child is not None and self._child.popen.poll() is None:
            return
        self.kill()
        interpreter = self._interpreter or interpreter_for(self.benchmark.simulator)
        self._child = Child(interpreter, self.benchmark.simulator, self._env)
        opening = Message("open", {"benchmark": as_json(self.benchmark)})
        self._episode_limit = self._exchange(
            self._child, opening, "ready", START_TIMEOUT, _episode_limit
        )
        self._episodes = 0

    def _call(
        self, message: Message, expected: str, timeout: float, read: Callable[[Message], T]
    ) -> T:
        self._ensure_started()
        assert self._child is not None
        return self._exchange(self._child, message, expected, timeout, read)

    def _exchange(
        self,
        child: Child,
        message: Message,
        expected: str,
        timeout: float,
        read: Callable[[Message], T],
    ) -> T:
        try:
            return child.ask(message, expected, timeout, read)
        except BaseException as error:
            # Also an interrupt from outside leaves half a message behind: the child must go.
            if isinstance(error, SimulatorDied):
                log.warning("%s: %s", self.benchmark.name, error.reason)
            self.kill()
            raise


def _episode_limit(ready: Message) -> Optional[int]:
    limit: Optional[int] = ready.value("episodes_per_process", int, type(None))
    return limit


def _fingerprint(reply: Message) -> Dict[str, str]:
    return dict(reply.value("fingerprint", dict))
