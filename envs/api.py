"""The types every simulator, policy and table share: observations, actions, benchmarks.

Kept importable on Python 3.8 with numpy alone, because simulator children import it.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Protocol, Sequence, Tuple

import numpy as np

ACTION_DIM = 7
"""xyz translation delta (3), rotation delta (3), gripper (1); the paper's A.1."""

ROTATIONS = ("euler", "axis_angle")


@dataclass(frozen=True)
class Observation:
    """What a policy sees at a replan.

    image: uint8 [H, W, 3], RGB, upright as the benchmark's published data shows it.
    views, state: extra cameras and proprioception; withheld unless a policy declares them.
    seed: what a stochastic policy may draw from: a function of the episode and the replan.
    """

    image: np.ndarray
    instruction: str
    views: Mapping[str, np.ndarray] = field(default_factory=dict)
    state: Optional[np.ndarray] = None
    seed: int = 0


@dataclass(frozen=True)
class ActionSpec:
    """Units, frame and gripper sign of a float32 [7] action.

    translation_scale: metres that a value of 1.0 moves. rotation: "euler" or "axis_angle";
    rotation_scale: radians per 1.0.
    gripper_close: the value that closes the gripper (+1 or -1).
    """

    translation_scale: float
    rotation: str
    rotation_scale: float
    gripper_close: int
    frame: str = "base"

    def __post_init__(self) -> None:
        """ValueError for what no action means: it may come from a file or from a server."""
        for name in ("translation_scale", "rotation_scale"):
            scale = getattr(self, name)
            if type(scale) not in (int, float) or not 0 < scale < float("inf"):
                raise ValueError(f"ActionSpec.{name} must be a positive number, not {scale!r:.99}")
        if self.gripper_close not in (-1, 1) or self.rotation not in ROTATIONS:
            said = f"gripper_close {self.gripper_close!r:.99}, rotation {self.rotation!r:.99}"
            raise ValueError(f"ActionSpec has {said}; known: 1, -1; {', '.join(ROTATIONS)}")
        if not isinstance(self.frame, str):
            raise ValueError(f"ActionSpec.frame must be a name, not {self.frame!r:.99}")

    def require_same(self, other: "ActionSpec", mine: str, theirs: str) -> None:
        """Raise ValueError naming each field in which two specs differ."""
        pairs = zip(dataclasses.fields(self), dataclasses.astuple(self), dataclasses.astuple(other))
        wrong = [f"{f.name}: {mine} has {a!r}, {theirs} has {b!r}" for f, a, b in pairs if a != b]
        if wrong:
            raise ValueError(f"actions of {mine} do not fit {theirs}: " + "; ".join(wrong))


@dataclass(frozen=True)
class TrainingRecipe:
    """How long and how fast a benchmark's policies are trained (paper A.2.1, A.2.2)."""

    steps: int
    batch: int
    lr: float
    checkpoints: Tuple[int, ...]
    """Steps whose checkpoints are evaluated, ascending; the last step's always is."""
    normalisation: str = "quantile"
    """A chain of `vlm4vla.data.normalise`, for the `paper` profile."""
    augmentation: str = "none"
    """A row of `vlm4vla.data.augment`, for the `paper` profile."""
    warmup: int = 0
    """Steps of linear warm-up."""
    schedule: str = "constant"
    """Learning rate after the warm-up: `constant`, or `cosine` down to 5% at the last step."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `vlm4vla.recipe.Recipe` that this benchmark sets in place of the profile's."""


@dataclass(frozen=True)
class Benchmark:
    """One row per benchmark: its tasks, protocol and training recipe.

    simulator: module in `envs` with the adapter class; `simulator_args` goes to its constructor.
    step_limits: control steps per task, or one number for all under the key "*".
    horizons: actions executed of a predicted chunk before looking again (full, half, one).
    dataset: the name its published demonstrations are prepared under; empty where there are none.
    """

    name: str
    simulator: str
    tasks: Tuple[str, ...]
    trials: int
    chunk: int
    horizons: Tuple[int, ...]
    step_limits: Mapping[str, int]
    action_spec: ActionSpec
    recipe: TrainingRecipe
    dataset: str
    success_rule: str = "any_step"
    demonstrations: Mapping[str, int] = field(default_factory=lambda: {"*": 50})
    """Expert episodes to try per task when demonstrations are collected here."""
    demonstrations_from: int = 1_000_000
    """Initial states from here on are sampled for demonstrations and never evaluated."""
    stored_states: Optional[int] = None
    """Initial states that the benchmark stores, for what is below `demonstrations_from`; None: any
    number can be made."""
    confirmation_from: Optional[int] = None
    """Fresh initial states of the evaluation's own kind begin here; None: after its `trials`."""
    chain: int = 1
    """Instructions in a row that an episode asks for; an outcome is the completed share."""
    simulator_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """ValueError for a row that contradicts itself, which would show after the training."""
        if unlimited := [task for task in self.tasks if self.step_limit(task) < 1]:
            raise ValueError(f"{self.name} has no step limit for {unlimited}: name them or '*'")
        if not self.horizons or not all(1 <= one <= self.chunk for one in self.horizons):
            raise ValueError(f"{self.name}: horizons {self.horizons} are not in 1..{self.chunk}")
        steps, points = self.recipe.steps, self.recipe.checkpoints
        if list(points) != sorted(points) or not all(1 <= point <= steps for point in points):
            raise ValueError(f"{self.name}: checkpoints {points} do not ascend in 1..{steps}")

    def step_limit(self, task: str) -> int:
        return self.step_limits.get(task, self.step_limits.get("*", 0))

    def demonstrations_of(self, task: str) -> int:
        return self.demonstrations.get(task, self.demonstrations.get("*", 0))

    def choose_tasks(self, names: Optional[Sequence[str]]) -> Tuple[str, ...]:
        """Some of the tasks, by name or by number; all of them for None."""
        return self.tasks if names is None else tuple(self._task(name) for name in names)

    def _task(self, name: str) -> str:
        # "²" is a digit, and "٣" is 3, to Python.
        if name.isascii() and name.isdigit() and len(name) < 5 and int(name) < len(self.tasks):
            return self.tasks[int(name)]
        if name not in self.tasks:
            raise did_you_mean("task of " + self.name, name, self.tasks)
        return name

    def choose_horizon(self, horizon: Optional[int], chunk: Optional[int] = None) -> int:
        """An allowed horizon; half the chunk for None. ValueError outside 1..chunk.

        chunk: a policy's that predicts more or fewer actions than the row says.
        """
        most = chunk or self.chunk
        if horizon is None:
            return min(most, self.horizons[len(self.horizons) // 2])
        if not 1 <= horizon <= most:
            raise ValueError(
                f"{most} actions are predicted at a time on {self.name}, so the horizon is "
                f"1 to {most}, not {horizon}."
            )
        return horizon


@dataclass(frozen=True)
class StepResult:
    """What one executed chunk of actions led to.

    observation: the frame after the last executed step (also at the episode's end).
    done: success under the benchmark's rule, or the step limit was reached.
    success: under the benchmark's rule; success_any: at some step so far in this episode;
    success_last: at the last executed step.
    steps: control steps executed in this chunk (fewer than len(actions) when done early, or
    when a new instruction begins).
    completed: instructions fulfilled so far in this episode, where it chains several (CALVIN).
    frames: uint8 [H, W, 3] per executed step when recording, else empty.
    """

    observation: Observation
    done: bool
    success: bool
    success_any: bool
    success_last: bool
    steps: int
    frames: Tuple[np.ndarray, ...] = ()
    completed: int = 0


@dataclass(frozen=True)
class Demonstration:
    """One expert episode; images[t] is what a policy sees before actions[t].

    images: uint8 [T, H, W, 3]; actions: float32 [T, 7] in the benchmark's ActionSpec.
    """

    instruction: str
    images: np.ndarray
    actions: np.ndarray
    success: bool
    steps: int


@dataclass(frozen=True)
class Thing:
    """One thing of a scene, exactly as the simulator has it.

    centre, extent: float64 [3], middle and side lengths of the box along the world's axes that
    encloses its visible shapes, metres, z up. pixels: how many of a picture's show it.
    """

    name: str
    centre: np.ndarray
    extent: np.ndarray
    pixels: int = 0


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion, as its picture is shown to policies.

    focal: pixels, the same both ways. width, height: pixels; the axis meets their middle.
    pose: float64 [4, 4] from the camera's axes to the world's, metres. Its columns are the
    picture's rightward, downward and forward directions and the position; a mirrored picture
    (LIBERO's turned one) has left-handed ones.
    """

    focal: float
    width: int
    height: int
    pose: np.ndarray


@dataclass(frozen=True)
class Snapshot:
    """One frame with everything the simulator knows about it.

    image: uint8 [H, W, 3], the policy's own frame. depth: float32 [H, W], metres along the
    camera's axis. segments: int32 [H, W], 1 + the index in `things`, 0 elsewhere.
    """

    image: np.ndarray
    depth: np.ndarray
    segments: np.ndarray
    camera: Camera
    things: Tuple[Thing, ...]


class Simulator(Protocol):
    """One simulator inside its child process; one episode at a time.

    Every adapter class takes its Benchmark row. `reset` seeds everything that can change
    the episode from its arguments alone, so episodes do not depend on their predecessors.
    """

    def reset(self, task: str, initial_state: int, seed: int, record: bool) -> Observation: ...

    def execute(self, actions: np.ndarray) -> StepResult:
        """Run actions float32 [k, 7] up to success or the step limit; render the last only."""
        ...

    def fingerprint(self) -> Dict[str, str]:
        """Package versions, renderer, assets' and adapter's hashes: what can change an outcome.

        Stored episodes count as long as it is the same; the row's rules are added to it.
        """
        ...

    def close(self) -> None: ...


def did_you_mean(kind: str, name: str, known: "Mapping[str, Any] | Tuple[str, ...]") -> ValueError:
    """The error for an unknown name: says what was asked, the closest match and all choices."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ValueError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(sorted(known))}.")


def as_json(value: Any) -> Dict[str, Any]:
    """A dataclass as plain JSON types (tuples become lists)."""
    return dataclasses.asdict(value)
