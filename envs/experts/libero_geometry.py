"""What the LIBERO expert reads from the simulator: shapes, the gripper's pose, ways to grasp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import numpy as np

DOWN = np.array([0.0, 0.0, -1.0])
OPENING = 0.072
"""Widest thing that the fingers are put around (m); they open to 0.08."""
FINGER_DEPTH = 0.045
"""How far below an object's top the fingertips reach at most (m)."""
RIM_DEPTH = 0.02
MESH, BOX, SPHERE = 7, 6, 2


@dataclass(frozen=True)
class Grasp:
    """Fingertips' position (m) and the horizontal direction along which the fingers close."""

    position: np.ndarray
    fingers: np.ndarray
    rim: bool


class Geometry:
    """Collision shapes as points, in metres and world axes, at the current moment."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.model = env.sim.model._model
        self.data = env.sim.data._data
        self._geoms: Dict[int, List[int]] = {}

    def gripper(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fingertips' position, the unit axis from right to left finger, the approach axis."""
        data = self.env.sim.data
        across = data.get_body_xpos("gripper0_leftfinger") - data.get_body_xpos(
            "gripper0_rightfinger"
        )
        approach = data.get_site_xmat("gripper0_grip_site")[:, 2]
        across = across - approach * (across @ approach)
        position = np.array(data.get_site_xpos("gripper0_grip_site"))
        return position, across / np.linalg.norm(across), np.array(approach)

    def object_points(self, name: str) -> np.ndarray:
        """Float [n, 3] on the convex collision shapes of an object or fixture."""
        return self.body_points(self.env.obj_body_id[name])

    def body_points(self, body: int) -> np.ndarray:
        return np.concatenate([self._geom_points(geom) for geom in self._geoms_of(body)])

    def other_points(self, name: str) -> np.ndarray:
        """The points of every object and fixture but one; float [n, 3]."""
        names = [other for other in self.env.obj_body_id if other != name]
        shapes = [self.object_points(other) for other in names if self._has_shape(other)]
        return np.concatenate(shapes) if shapes else np.zeros((0, 3))

    def origin(self, name: str) -> np.ndarray:
        return np.array(self.data.xpos[self.env.obj_body_id[name]])

    def site(self, name: str) -> np.ndarray:
        return np.array(self.env.sim.data.get_site_xpos(name))

    def _has_shape(self, name: str) -> bool:
        return bool(self._geoms_of(self.env.obj_body_id[name]))

    def _geoms_of(self, body: int) -> List[int]:
        if body not in self._geoms:
            self._geoms[body] = [geom for geom in range(self.model.ngeom) if self._in(geom, body)]
        return self._geoms[body]

    def _in(self, geom: int, body: int) -> bool:
        if not (self.model.geom_contype[geom] or self.model.geom_conaffinity[geom]):
            return False
        owner = self.model.geom_bodyid[geom]
        while owner not in (0, body):
            owner = self.model.body_parentid[owner]
        return bool(owner == body)

    def _geom_points(self, geom: int) -> np.ndarray:
        turn = self.data.geom_xmat[geom].reshape(3, 3)
        return self._local_points(geom) @ turn.T + self.data.geom_xpos[geom]

    def _local_points(self, geom: int) -> np.ndarray:
        kind, size = self.model.geom_type[geom], self.model.geom_size[geom]
        if kind == MESH:
            mesh = self.model.geom_dataid[geom]
            first, count = self.model.mesh_vertadr[mesh], self.model.mesh_vertnum[mesh]
            return self.model.mesh_vert[first : first + count]
        if kind == BOX:
            return _LATTICE * size
        if kind == SPHERE:
            return _LATTICE * size[0]
        angles = np.linspace(0, 2 * np.pi, 16)
        ring = np.stack([size[0] * np.cos(angles), size[0] * np.sin(angles)], 1)
        ends = [np.c_[ring, np.full(len(ring), z)] for z in (-size[1], size[1])]
        return np.concatenate(ends)


_LATTICE = np.stack(np.meshgrid(*[np.linspace(-1, 1, 7)] * 3), -1).reshape(-1, 3)
"""Of a box: long walls are obstacles between their corners too."""


def middle(points: np.ndarray) -> np.ndarray:
    """The centre of the points' bounding box."""
    return (points.max(0) + points.min(0)) / 2


def horizontal(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle), 0.0])


def turn_between(one: np.ndarray, other: np.ndarray) -> float:
    """The angle between two finger axes, which have no sign (rad, at most pi/2)."""
    return float(np.arccos(np.clip(abs(one @ other), 0.0, 1.0)))


def grasp_of(geometry: Geometry, name: str, attempt: int = 0) -> Grasp:
    """Around the object where it is narrow enough for the fingers, else at its rim.

    Later attempts take the next best place at the rim.
    """
    points = geometry.object_points(name)
    now = geometry.gripper()[1]
    start = float(np.arctan2(now[1], now[0]))
    axes = [horizontal(start + turn) for turn in np.linspace(-np.pi / 2, np.pi / 2, 37)[:-1]]
    widths = np.array([np.ptp(points @ axis) for axis in axes])
    cost = widths + 0.004 * np.array([turn_between(axis, now) for axis in axes])
    best = int(cost.argmin())
    if widths[best] > OPENING:
        return _rim_grasp(geometry, name, points, attempt)
    position = middle(points)
    top, bottom = points[:, 2].max(), points[:, 2].min()
    position[2] = max(position[2], top - FINGER_DEPTH, bottom + 0.006)
    return Grasp(position, axes[best], rim=False)


def _rim_grasp(geometry: Geometry, name: str, points: np.ndarray, attempt: int) -> Grasp:
    """One finger inside, one outside, where the outer one has most room and turns least."""
    top = points[:, 2].max()
    rim = points[points[:, 2] > top - RIM_DEPTH]
    others = _obstacles(geometry.other_points(name), middle(rim), top - RIM_DEPTH - 0.02)
    now = geometry.gripper()[1]
    start = float(np.arctan2(now[1], now[0]))
    axes = [horizontal(start + turn) for turn in np.linspace(-np.pi, np.pi, 25)[:-1]]
    grasps = [_at_rim(rim, axis) for axis in axes]
    costs = [0.02 * turn_between(g.fingers, now) - _room(g, others) for g in grasps]
    ranked = [grasps[i] for i in np.argsort(costs, kind="stable")]
    return _distinct(ranked)[attempt % len(_distinct(ranked))]


def _obstacles(points: np.ndarray, centre: np.ndarray, lowest: float) -> np.ndarray:
    near = np.linalg.norm(points[:, :2] - centre[:2], axis=1) < 0.2
    return points[near & (points[:, 2] > lowest)]


def _at_rim(rim: np.ndarray, axis: np.ndarray) -> Grasp:
    centre = middle(rim)
    radius = float((rim @ axis).max() - centre @ axis)
    position = centre + axis * (radius - 0.006)
    position[2] = rim[:, 2].max() - RIM_DEPTH
    return Grasp(position, axis, rim=True)


def _room(grasp: Grasp, others: np.ndarray) -> float:
    """Distance (m, at most 0.06) from where the outer finger goes down to what stands there."""
    outside = grasp.position + grasp.fingers * 0.035
    if not len(others):
        return 0.06
    return min(0.06, float(np.linalg.norm(others[:, :2] - outside[:2], axis=1).min()))


def _distinct(ranked: List[Grasp]) -> List[Grasp]:
    """Of each set of neighbouring places the best: those at least 45 degrees apart."""
    kept: List[Grasp] = []
    for grasp in ranked:
        if all(grasp.fingers @ other.fingers < 0.71 for other in kept):
            kept.append(grasp)
    return kept
