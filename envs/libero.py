"""LIBERO: benchmark rows, and the adapter that its child runs.

The rows import nothing of LIBERO. Protocol: 50 stored initial states per task, 10 settle
steps, one 224-pixel front camera turned by 180° as in the published datasets, success at any
step, and a step limit per suite (OpenVLA's). The study trains on libero_10 (paper A.2.2).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from envs import libero_install
from envs.api import (
    ActionSpec,
    Benchmark,
    Demonstration,
    Observation,
    Snapshot,
    StepResult,
    TrainingRecipe,
    did_you_mean,
)
from envs.libero_scene import Scene

CAMERA = "agentview"
IMAGE_SIZE = 224
STEP_LIMITS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
ACTIONS = ActionSpec(
    translation_scale=0.05, rotation="axis_angle", rotation_scale=0.5, gripper_close=1
)
RECIPE = TrainingRecipe(
    steps=50_000, batch=512, lr=5e-5, checkpoints=tuple(range(5_000, 50_001, 5_000))
)
TASKS: Dict[str, List[str]] = json.loads(
    Path(__file__).with_name("libero_tasks.json").read_text(encoding="utf-8")
)


def _row(suite: str) -> Benchmark:
    return Benchmark(
        name=suite,
        simulator="libero",
        tasks=tuple(TASKS[suite]),
        trials=50,
        chunk=4,
        horizons=(4, 2, 1),
        step_limits={"*": STEP_LIMITS[suite]},
        action_spec=ACTIONS,
        recipe=RECIPE,
        dataset=f"{suite}_no_noops",
        stored_states=50,
        confirmation_from=2_000_000,
        simulator_args={"suite": suite},
    )


BENCHMARKS: Dict[str, Benchmark] = {suite: _row(suite) for suite in STEP_LIMITS}


def sentence(task: str) -> str:
    """The instruction that a task's name spells: its scene's name left out."""
    words = [word for word in task.split("_") if not word.isupper() and not word[:5].isupper()]
    return " ".join(words)


def wrong_instruction(task: str, initial_state: int) -> str:
    """The instruction of another task of the same suite."""
    names = next(names for names in TASKS.values() if task in names)
    shift = 1 + initial_state % (len(names) - 1)
    return sentence(names[(names.index(task) + shift) % len(names)])


class Libero:
    """Simulator of one suite. `simulator_args` of its row:

    suite: LIBERO's name for it.
    image_size: pixels of each camera (224).
    views: extra cameras, such as "robot0_eye_in_hand" (none).
    state: whether observations carry proprioception (no).
    seeding: "episode" seeds every episode from its own number; "once" seeds only the first of
        a process and compiles at every reset, as the official evaluators do, whose fixtures
        then stand where the episodes before have left the random stream.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        libero_install.prepare()
        args = benchmark.simulator_args
        self.benchmark = benchmark
        self.image_size = int(args.get("image_size", IMAGE_SIZE))
        self.views: Tuple[str, ...] = tuple(args.get("views", ()))
        self.with_state = bool(args.get("state", False))
        self.official = args.get("seeding", "episode") == "once"
        self.suite = libero_install.suite(args["suite"])
        self.indices = {task.name: i for i, task in enumerate(self.suite.tasks)}
        self.episodes_per_process = libero_install.episodes_per_process()
        self.task: Optional[str] = None
        self.scene: Optional[Scene] = None
        self._renderer = ""

    def reset(self, task: str, initial_state: int, seed: int, record: bool) -> Observation:
        scene, fresh = self._scene_of(task)
        start, seed = self._start(initial_state, seed)
        scene.reset(start, seed, reseed=fresh or not self.official)
        self.record, self.steps, self.success = record, 0, False
        return self._look()

    def execute(self, actions: np.ndarray) -> StepResult:
        assert self.scene is not None
        frames = []
        limit = self.benchmark.step_limit(self.task or "")
        first = self.steps
        for action in actions:
            success = self.scene.step(action.tolist())
            self.steps += 1
            self.success = self.success or success
            if self.record:
                frames.append(self.scene.frames()[CAMERA])
            if self.success or self.steps >= limit:
                break
        return StepResult(
            observation=self._look(),
            done=self.success or self.steps >= limit,
            success=self.success,
            success_any=self.success,
            success_last=success,
            steps=self.steps - first,
            frames=tuple(frames),
        )

    def demonstrate(self, task: str, initial_state: int, seed: int) -> Demonstration:
        """One episode of the scripted expert; only a success is played again with frames."""
        from envs.experts.libero import Expert

        instruction = self._begin(task, initial_state, seed)
        assert self.scene is not None
        expert = Expert(self.scene.env)
        actions: List[np.ndarray] = []
        success = False
        while (
            not success and not expert.finished and len(actions) < self.benchmark.step_limit(task)
        ):
            actions.append(expert.act())
            success = self.scene.step(actions[-1].tolist())
        images = self._replay(task, initial_state, seed, actions) if success else []
        shape = (-1, self.image_size, self.image_size, 3)
        return Demonstration(
            instruction=instruction,
            images=np.asarray(images, np.uint8).reshape(shape),
            actions=np.asarray(actions, np.float32).reshape(-1, 7),
            success=success,
            steps=len(actions),
        )

    def snapshot(self) -> Snapshot:
        """The current frame of the front camera with its depth, segments, poses and sizes."""
        from envs.libero_view import snapshot

        assert self.scene is not None
        return snapshot(self.scene, CAMERA, self.image_size)

    def fingerprint(self) -> Dict[str, str]:
        found = libero_install.versions()
        found["renderer"] = self._renderer_name()
        found["assets"] = libero_install.assets_hash()
        return found

    def close(self) -> None:
        if self.scene is not None:
            self.scene.close()
        self.scene, self.task = None, None

    def _begin(self, task: str, initial_state: int, seed: int) -> str:
        scene, _ = self._scene_of(task)
        scene.reset(*self._start(initial_state, seed))
        return self._instruction()

    def _replay(self, task: str, initial_state: int, seed: int, actions: Any) -> List[np.ndarray]:
        """The frames before each action. Episodes repeat exactly, and rendering is the cost."""
        self._begin(task, initial_state, seed)
        assert self.scene is not None
        images = []
        for action in actions:
            images.append(self.scene.frames()[CAMERA])
            self.scene.step(action.tolist())
        return images

    def _scene_of(self, task: str) -> Tuple[Scene, bool]:
        """The task's scene, and whether it is a new one."""
        if task not in self.indices:
            raise did_you_mean(f"task of {self.benchmark.name}", task, tuple(self.indices))
        if self.scene is not None and self.task == task:
            return self.scene, False
        self.close()
        path = libero_install.bddl_path(self.suite.get_task(self.indices[task]))
        self.scene = Scene(path, (CAMERA, *self.views), self.image_size, hard=self.official)
        self.task = task
        self._initial_states = libero_install.initial_states(self.suite, self.indices[task])
        return self.scene, True

    def _start(self, number: int, seed: int) -> Tuple[Optional[np.ndarray], int]:
        """A fixed state and the seed; from `demonstrations_from` on no state, a seed for each."""
        if number >= self.benchmark.demonstrations_from:
            return None, int(np.random.SeedSequence([abs(seed), number]).generate_state(1)[0])
        if not 0 <= number < len(self._initial_states):
            count = len(self._initial_states)
            raise ValueError(f"initial state {number} of {self.task}: it has 0 to {count - 1}")
        return self._initial_states[number], seed % 2**32

    def _instruction(self) -> str:
        return str(self.suite.get_task(self.indices[self.task or ""]).language)

    def _look(self) -> Observation:
        assert self.scene is not None
        frames = self.scene.frames()
        return Observation(
            image=frames.pop(CAMERA),
            instruction=self._instruction(),
            views=frames,
            state=self.scene.proprioception() if self.with_state else None,
        )

    def _renderer_name(self) -> str:
        """Asked of a scene's context: a second context beside it would spoil its frames."""
        if not self._renderer:
            if self.scene is None:
                self._scene_of(self.benchmark.tasks[0])
            self._renderer = libero_install.renderer()
        return self._renderer
