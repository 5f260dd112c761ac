"""Action normalisation as named transforms; the inverse travels with the policy.

Sources: CALVIN relative actions are clipped to ±0.65 and rescaled; Bridge and LIBERO use
q01/q99 (the paper's A.1); the released code then clips to ±0.65 a second time (`official`).
The gripper (column 6) is never touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.api import ACTION_DIM

CLIP = 0.65


@dataclass(frozen=True)
class Statistics:
    """Per-dimension statistics of a dataset's actions, float lists of length 7."""

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]

    def __post_init__(self) -> None:
        """ValueError unless each is 7 finite numbers: they may come from a damaged file."""
        for name, column in vars(self).items():
            try:
                found = np.array(column)
            except ValueError:
                found = np.empty(0)
            if found.shape != (ACTION_DIM,) or found.dtype.kind not in "iuf":
                raise ValueError(f"statistics {name} must be {ACTION_DIM} numbers: {column!r:.99}")
            if not np.isfinite(found).all():
                raise ValueError(f"statistics {name} are not finite: {column!r:.99}")

    @staticmethod
    def of(actions: np.ndarray) -> Statistics:
        """actions: float32 [N, 7]."""
        low, high = np.quantile(actions, [0.01, 0.99], axis=0)
        columns = (low, high, actions.mean(0), actions.std(0), actions.min(0), actions.max(0))
        return Statistics(*(tuple(float(x) for x in column) for column in columns))

    @staticmethod
    def from_json(value: Mapping[str, Sequence[float]]) -> Statistics:
        """ValueError for anything but what `vars` gives of statistics."""
        try:
            return Statistics(**{name: tuple(column) for name, column in value.items()})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"no statistics of actions: {error}") from None


def _span(statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array(statistics.q01[:6]), np.array(statistics.q99[:6])
    # A dimension that never moves maps to zero and back to its constant.
    return (high + low) / 2, np.maximum((high - low) / 2, 1e-8)


def _clip_forward(pose: np.ndarray, _: Statistics) -> np.ndarray:
    return np.clip(pose, -CLIP, CLIP) / CLIP


def _clip_inverse(pose: np.ndarray, _: Statistics) -> np.ndarray:
    return pose * CLIP


def _quantile_forward(pose: np.ndarray, statistics: Statistics) -> np.ndarray:
    centre, half = _span(statistics)
    return np.clip((pose - centre) / half, -1.0, 1.0)


def _quantile_inverse(pose: np.ndarray, statistics: Statistics) -> np.ndarray:
    centre, half = _span(statistics)
    return pose * half + centre


Step = Callable[[np.ndarray, Statistics], np.ndarray]
_FORWARD: dict[str, Step] = {"clip65": _clip_forward, "quantile": _quantile_forward}
_INVERSE: dict[str, Step] = {"clip65": _clip_inverse, "quantile": _quantile_inverse}

CHAINS: dict[str, tuple[str, ...]] = {
    "identity": (),
    "clip65": ("clip65",),
    "quantile": ("quantile",),
    "quantile+clip65": ("quantile", "clip65"),
}


@dataclass(frozen=True)
class Normaliser:
    """A named chain of transforms with the statistics they need."""

    kind: str
    statistics: Statistics

    def __post_init__(self) -> None:
        if self.kind not in CHAINS:
            raise ValueError(f"Unknown normalisation {self.kind!r}; known: {', '.join(CHAINS)}.")

    def forward(self, actions: np.ndarray) -> np.ndarray:
        """Raw actions [..., 7] to the policy's range; float32, gripper unchanged."""
        return self._through(actions, [_FORWARD[name] for name in CHAINS[self.kind]])

    def inverse(self, actions: np.ndarray) -> np.ndarray:
        """The policy's actions [..., 7] in the benchmark's units."""
        return self._through(actions, [_INVERSE[name] for name in reversed(CHAINS[self.kind])])

    def _through(self, actions: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
        pose = actions[..., :6].astype(np.float64)
        for step in steps:
            pose = step(pose, self.statistics)
        return np.concatenate([pose, actions[..., 6:]], axis=-1).astype(np.float32)

    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "statistics": dataclasses.asdict(self.statistics)}

    @staticmethod
    def from_json(value: Mapping[str, object]) -> Normaliser:
        """ValueError for anything but what `to_json` gives."""
        if not isinstance(value, Mapping) or not {"kind", "statistics"} <= value.keys():
            raise ValueError(f"no normaliser: {value!r:.99}")
        statistics: Any = value["statistics"]
        return Normaliser(str(value["kind"]), Statistics.from_json(statistics))
