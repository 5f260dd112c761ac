"""`tabletop`: an embedded, language-conditioned benchmark that needs numpy alone.

A square table seen from above, three or four coloured blocks, a tray along the near edge
and a two-finger gripper. Actions have the shape and meaning of the real benchmarks', so
that the laptop runs the code that the cluster runs. Dynamics are deterministic: an episode
is a pure function of (task, initial state, actions).
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Dict, List, Optional, Tuple

import numpy as np

from envs.api import (
    ActionSpec,
    Benchmark,
    Demonstration,
    Observation,
    StepResult,
    TrainingRecipe,
)

VERSION = "1"
"""Raised whenever dynamics, scenes or pixels change; part of the fingerprint."""

PIXELS = 224
TABLE = 0.4
"""Side of the table, metres; x grows to the right, y away from the robot, z up."""
HEIGHT = 0.2
TRAY_DEPTH = 0.07
STEP = 0.05
"""Metres per control step at full deflection."""
REACH = 0.03
"""How near (metres) the gripper must come to a block's grasp point."""
GRASP_Z = 0.02
BLOCK_TOP = 0.045
PUSH_DISTANCE = 0.05
CONTACT = 0.04
"""Distance in y at which a closed, lowered gripper touches a block's centre line."""
BLOCK_HALF = 16
MARKER_HALF = 12
STEP_LIMIT = 40
DEMONSTRATIONS_FROM = 1_000_000
"""Initial states from here on are for demonstrations; below are trials and confirmation."""

COLOURS: Dict[str, Tuple[int, int, int]] = {
    "red": (230, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 60, 230),
    "yellow": (235, 215, 30),
}
TASKS = ("reach", "push", "pick-and-place")
PHRASES = {
    "reach": "reach the {} block",
    "push": "push the {} block away",
    "pick-and-place": "put the {} block in the tray",
}

BENCHMARKS: Dict[str, Benchmark] = {
    "tabletop": Benchmark(
        name="tabletop",
        simulator="tabletop",
        tasks=TASKS,
        trials=100,
        chunk=4,
        horizons=(4, 2, 1),
        step_limits={"*": STEP_LIMIT},
        action_spec=ActionSpec(
            translation_scale=STEP, rotation="euler", rotation_scale=0.5, gripper_close=1
        ),
        recipe=TrainingRecipe(
            steps=1000,
            batch=64,
            lr=2e-3,
            checkpoints=(500, 1000),
            normalisation="identity",
            augmentation="mirror",
            warmup=50,
            schedule="cosine",
            # What lets models of 300k parameters learn in a minute; measured in README.
            overrides={
                "huber_delta": 0.5,
                "pose_weight": 5.0,
                "gripper_weight": 0.1,
                "clip_norm": 1.0,
                "query_from_prompt": True,
            },
        ),
        dataset="",
        # Learning which word means which block is the slow part, and reaching shows it best.
        demonstrations={"reach": 600, "*": 120},
    )
}


@dataclasses.dataclass
class Scene:
    """State of the table: positions in metres; colours index `COLOURS` in order."""

    blocks: np.ndarray  # float64 [n, 2]
    colours: Tuple[str, ...]
    target: int
    gripper: np.ndarray  # float64 [3]
    closed: bool = False
    held: Optional[int] = None

    def block(self) -> np.ndarray:
        return self.blocks[self.target]

    def grasp_point(self, index: int) -> np.ndarray:
        return np.append(self.blocks[index], GRASP_Z)


def sample_scene(task: str, initial_state: int) -> Scene:
    """The scene of one initial state; every task draws from the same distribution."""
    rng = np.random.default_rng([TASKS.index(task), initial_state])
    while True:
        count = int(rng.integers(3, 5))
        blocks = rng.uniform([0.05, 0.13], [0.35, 0.35], (count, 2))
        gripper = rng.uniform([0.04, 0.09, 0.06], [0.36, 0.36, 0.12])
        colours = tuple(np.array(list(COLOURS))[rng.permutation(len(COLOURS))[:count]].tolist())
        target = int(rng.integers(count))
        if _spread(blocks, gripper) and (task != "push" or _lane_is_free(blocks, target)):
            return Scene(blocks, colours, target, gripper)


def _spread(blocks: np.ndarray, gripper: np.ndarray) -> bool:
    """No two blocks overlap, and the gripper does not start above one."""
    gaps = np.linalg.norm(blocks[:, None] - blocks[None], axis=-1) + np.eye(len(blocks))
    clear = np.linalg.norm(blocks - gripper[:2], axis=-1).min()
    return bool(gaps.min() > 0.085 and clear > 0.08)


def _lane_is_free(blocks: np.ndarray, target: int) -> bool:
    """Room to stand before the target and to push it away without meeting another block."""
    x, y = blocks[target]
    others = np.delete(blocks, target, axis=0)
    lane = (
        (np.abs(others[:, 0] - x) < 0.065) & (others[:, 1] > y - 0.11) & (others[:, 1] < y + 0.13)
    )
    return bool(y < 0.29 and not lane.any())


def instruction(task: str, scene: Scene) -> str:
    return PHRASES[task].format(scene.colours[scene.target])


def wrong_instruction(task: str, initial_state: int) -> str:
    """The same sentence with another block of the scene: shows whether words are used."""
    scene = sample_scene(task, initial_state)
    return PHRASES[task].format(scene.colours[(scene.target + 1) % len(scene.colours)])


def advance(scene: Scene, action: np.ndarray) -> None:
    """One control step in place; the gripper closes above 0 and opens otherwise."""
    before = scene.gripper.copy()
    move = np.clip(action[:3], -1.0, 1.0) * STEP
    scene.gripper = np.clip(before + move, [0, 0, 0.01], [TABLE, TABLE, HEIGHT])
    closing = action[6] > 0 and not scene.closed
    scene.closed = bool(action[6] > 0)
    if not scene.closed:
        scene.held = None
    elif closing:
        scene.held = _grasped(scene)
    if scene.held is not None:
        scene.blocks[scene.held] = scene.gripper[:2]
    elif scene.closed and scene.gripper[2] < BLOCK_TOP:
        _push(scene, before)


def _grasped(scene: Scene) -> Optional[int]:
    offsets = np.abs(scene.blocks - scene.gripper[:2]).max(axis=-1)
    nearest = int(offsets.argmin())
    return nearest if scene.gripper[2] < BLOCK_TOP and offsets[nearest] < 0.022 else None


def _push(scene: Scene, before: np.ndarray) -> None:
    """A closed, low gripper that moved away from the robot takes blocks in its way along."""
    dx = np.abs(scene.blocks[:, 0] - scene.gripper[0])
    for index in np.flatnonzero(dx < 0.03):
        ahead = before[1] <= scene.blocks[index, 1] - 0.02
        if ahead and scene.gripper[1] > scene.blocks[index, 1] - CONTACT:
            scene.blocks[index, 1] = min(scene.gripper[1] + CONTACT, TABLE)


def succeeded(task: str, scene: Scene, start: np.ndarray) -> bool:
    """start: the target's position [2] at the beginning of the episode."""
    if task == "reach":
        return bool(np.linalg.norm(scene.grasp_point(scene.target) - scene.gripper) < REACH)
    if task == "push":
        return bool(scene.held is None and scene.block()[1] - start[1] > PUSH_DISTANCE)
    return bool(scene.held is None and scene.block()[1] < TRAY_DEPTH)


def pixel(metres: float) -> int:
    """Columns from the left, or rows from the bottom, of a place on the table."""
    return round(float(metres) / TABLE * PIXELS)


def square(image: np.ndarray, column: int, row: int, half: int, colour: object) -> None:
    image[max(0, row - half) : max(0, row + half), max(0, column - half) : column + half] = colour


def render(scene: Scene) -> np.ndarray:
    """uint8 [224, 224, 3], from above; the gripper's marker rises with its height.

    Open: a white square with a black heart; closed: the reverse. A black cross marks the
    point of the table below the gripper.
    """
    image = np.full((PIXELS, PIXELS, 3), 128, np.uint8)
    image[PIXELS - pixel(TRAY_DEPTH) :] = 96
    for index, (x, y) in enumerate(scene.blocks):
        square(image, pixel(x), PIXELS - pixel(y), BLOCK_HALF, COLOURS[scene.colours[index]])
    column, row = pixel(scene.gripper[0]), PIXELS - pixel(scene.gripper[1])
    image[max(0, row - 1) : row + 1, max(0, column - 8) : column + 8] = 20
    image[max(0, row - 8) : row + 8, max(0, column - 1) : column + 1] = 20
    outer, inner = (20, 255) if scene.closed else (255, 20)
    square(image, *marker(scene), MARKER_HALF, outer)
    square(image, *marker(scene), MARKER_HALF // 2, inner)
    return image


def marker(scene: Scene) -> Tuple[int, int]:
    """Column and row of the gripper's marker."""
    x, y, z = scene.gripper
    return pixel(x), PIXELS - pixel(y) - pixel(z * 0.6)


class Tabletop:
    """The `Simulator` of this benchmark; one episode at a time."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark

    def reset(
        self, task: str, initial_state: int, seed: int = 0, record: bool = False
    ) -> Observation:
        """`seed` changes nothing here: scenes come from the initial state alone."""
        if task not in TASKS:
            raise ValueError(f"tabletop has no task {task!r}; it has {', '.join(TASKS)}.")
        self.task, self.record = task, record
        self.scene = sample_scene(task, initial_state)
        self.start = self.scene.block().copy()
        self.steps, self.success_any = 0, False
        return self._observe()

    def _observe(self) -> Observation:
        return Observation(image=render(self.scene), instruction=instruction(self.task, self.scene))

    def execute(self, actions: np.ndarray) -> StepResult:
        frames: List[np.ndarray] = []
        executed, success = 0, False
        for action in actions:
            advance(self.scene, action)
            executed, self.steps = executed + 1, self.steps + 1
            success = succeeded(self.task, self.scene, self.start)
            self.success_any |= success
            if self.record:
                frames.append(render(self.scene))
            if success or self.steps >= self.benchmark.step_limit(self.task):
                break
        done = success or self.steps >= self.benchmark.step_limit(self.task)
        return StepResult(
            observation=self._observe(),
            done=done,
            success=success,
            success_any=self.success_any,
            success_last=success,
            steps=executed,
            frames=tuple(frames),
        )

    def demonstrate(self, task: str, initial_state: int, seed: int) -> Demonstration:
        from envs.experts import tabletop as expert

        return expert.demonstrate(task, initial_state, seed)

    def fingerprint(self) -> Dict[str, str]:
        picture = render(sample_scene("reach", 0)).tobytes()
        return {"tabletop": VERSION, "frame": hashlib.sha256(picture).hexdigest()[:12]}

    def close(self) -> None:
        """Nothing to release."""
