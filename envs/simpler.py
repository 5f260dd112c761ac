"""SimplerEnv, WidowX on Bridge V2: four tasks × 24 episodes (paper section 4, Table 2).

Policies act in the dataset's units (metres, Euler radians, +1 opens the gripper); the
simulator wants axis-angle, so the conversion is here, after the published evaluators'.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Mapping, Optional

import numpy as np

from envs.api import ActionSpec, Benchmark, Observation, StepResult, TrainingRecipe
from envs.resize import resize
from envs.simpler_scene import EPISODES, Scene

IMAGE_SIZE = 224
GRIPPERS = ("threshold", "two_consecutive")
LONG_TASK = "widowx_put_eggplant_in_basket"

BENCHMARKS: Dict[str, Benchmark] = {
    "simpler": Benchmark(
        name="simpler",
        simulator="simpler",
        tasks=(
            "widowx_carrot_on_plate",
            LONG_TASK,
            "widowx_spoon_on_towel",
            "widowx_stack_cube",
        ),
        trials=EPISODES,
        chunk=4,
        horizons=(4, 2, 1),
        step_limits={"*": 60, LONG_TASK: 120},
        action_spec=ActionSpec(
            translation_scale=1.0, rotation="euler", rotation_scale=1.0, gripper_close=-1
        ),
        recipe=TrainingRecipe(
            steps=50_000,
            batch=512,
            lr=5e-5,
            checkpoints=tuple(range(5_000, 50_001, 5_000)),
            normalisation="quantile",
            augmentation="crop+colour",
        ),
        dataset="bridge_orig",
    )
}
INSTRUCTIONS: Dict[str, str] = {
    "widowx_carrot_on_plate": "put carrot on plate",
    LONG_TASK: "put eggplant into yellow basket",
    "widowx_spoon_on_towel": "put the spoon on the towel",
    "widowx_stack_cube": "stack the green block on the yellow block",
}
"""As the simulator says them."""
OFFICIAL: Mapping[str, Any] = {
    "success_rule": "last_step",
    "simulator_args": {"gripper": "two_consecutive"},
}
"""What the released evaluator has otherwise: fields of the row (`envs.benchmarks.evaluated`)."""


def wrong_instruction(task: str, initial_state: int) -> str:
    """The instruction of another of the four tasks."""
    tasks = list(INSTRUCTIONS)
    return INSTRUCTIONS[tasks[(tasks.index(task) + 1 + initial_state % 3) % 4]]


def axis_angle(euler: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw (rad, about the fixed x, y, z in turn) to axis × angle, float64 [3]."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(euler / 2), np.sin(euler / 2)
    w = cy * cp * cr + sy * sp * sr
    axis = np.array(
        [
            cy * cp * sr - sy * sp * cr,
            cy * sp * cr + sy * cp * sr,
            sy * cp * cr - cy * sp * sr,
        ]
    )
    length = float(np.linalg.norm(axis))
    if length < 1e-12:
        return 2 * axis
    return axis * (2 * math.atan2(length, w) / length)


class Gripper:
    """The command ±1 (+1 opens) from a policy's value.

    threshold: its sign. two_consecutive (`official`): opens from the second positive value in
    a row on, closes at once.
    """

    def __init__(self, rule: str) -> None:
        if rule not in GRIPPERS:
            raise ValueError(f"gripper rule {rule!r} is not one of {', '.join(GRIPPERS)}")
        self._needed = 2 if rule == "two_consecutive" else 1
        self._positive = 0

    def reset(self) -> None:
        self._positive = 0

    def command(self, value: float) -> float:
        self._positive = self._positive + 1 if value > 0 else 0
        return 1.0 if self._positive >= self._needed else -1.0


class Simpler:
    """The protocol over a scene; one task's scene is kept until another task is asked for.

    `simulator_args` of the row: gripper (see `Gripper`), image_size, state (true for the eight
    joint positions). An episode runs to its step limit whatever happens, as the published
    evaluators' do, so that both success rules are known: the row's `success_rule` ("any_step"
    or "last_step") names the one that counts.
    """

    def __init__(self, benchmark: Benchmark, scene: Any = Scene) -> None:
        args = benchmark.simulator_args
        unknown = sorted(set(args) - {"gripper", "image_size", "state"})
        if unknown or benchmark.success_rule not in ("any_step", "last_step"):
            raise ValueError(
                f"simpler cannot do {', '.join(unknown) or benchmark.success_rule}: known are "
                "gripper, image_size and state; success rules any_step and last_step."
            )
        self.benchmark = benchmark
        self.gripper = Gripper(args.get("gripper", "threshold"))
        self.image_size = int(args.get("image_size", IMAGE_SIZE))
        self.with_state = bool(args.get("state", False))
        self._make = scene
        self._task: Optional[str] = None
        self.scene: Any = None

    def reset(self, task: str, initial_state: int, seed: int, record: bool) -> Observation:
        """Begin episode `initial_state`: 0–23 are the benchmark's, later ones variations."""
        if initial_state < 0:
            raise IndexError(f"SimplerEnv episode {initial_state} does not exist.")
        if task != self._task:
            self.close()
            self.scene, self._task = self._make(task), task
        self.scene.reset(initial_state, seed)
        self.gripper.reset()
        self.steps, self.any, self.last, self.record = 0, False, False, record
        return self._observe()

    def execute(self, actions: np.ndarray) -> StepResult:
        """Run float32 [k, 7]: metres, Euler radians (both deltas), gripper opens above zero."""
        limit = self.benchmark.step_limit(str(self._task))
        frames, first = [], self.steps
        for action in actions[: limit - self.steps]:
            self._step(action)
            if self.record:
                frames.append(self._look())
        rule = self.any if self.benchmark.success_rule == "any_step" else self.last
        return StepResult(
            observation=self._observe(frames[-1] if frames else None),
            done=self.steps >= limit,
            success=rule,
            success_any=self.any,
            success_last=self.last,
            steps=self.steps - first,
            frames=tuple(frames),
        )

    def fingerprint(self) -> Dict[str, str]:
        return dict(self._make.fingerprint())

    def close(self) -> None:
        if self.scene is not None:
            self.scene.close()
        self.scene, self._task = None, None

    def _step(self, action: np.ndarray) -> None:
        wide = action.astype(np.float64)
        gripper = self.gripper.command(float(wide[6]))
        command = np.concatenate([wide[:3], axis_angle(wide[3:6]), [gripper]])
        self.last = bool(self.scene.step(command))
        self.any = self.any or self.last
        self.steps += 1

    def _observe(self, image: Optional[np.ndarray] = None) -> Observation:
        return Observation(
            image=self._look() if image is None else image,
            instruction=self.scene.instruction(),
            state=self.scene.joints().astype(np.float32) if self.with_state else None,
        )

    def _look(self) -> np.ndarray:
        return resize(self.scene.look(), self.image_size)
