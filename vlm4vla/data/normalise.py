"""Action normalisation as named transforms; the inverse travels with the policy.

Sources: CALVIN relative actions are clipped to ±0.65 and rescaled; Bridge and LIBERO use
q01/q99 (the paper's A.1); the released code then clips to ±0.65 a second time (`official`).
The gripper (column 6) is never touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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

    @staticmethod
    def of(actions: np.ndarray) -> Statistics:
        """actions: float32 [N, 7]."""
        low, high = np.quantile(actions, [0.01, 0.99], axis=0)
        columns = (low, high, actions.mean(0), actions.std(0), actions.min(0), actions.max(0))
        return Statistics(*(tuple(float(x) for x in column) for column in columns))

    @staticmethod
    def from_json(value: Mapping[str, Sequence[float]]) -> Statistics:
        return Statistics(**{name: tuple(column) for name, column in value.items()})


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
        statistics = value["statistics"]
        assert isinstance(statistics, Mapping)
        return Normaliser(str(value["kind"]), Statistics.from_json(statistics))
