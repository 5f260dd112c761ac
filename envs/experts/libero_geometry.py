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
RIM_DEPTH, THIN = 0.02, 0.03
HAND = (0.11, 0.04)
"""Half the hand's length along and across the fingers' axis (m)."""
MESH, BOX, SPHERE = 7, 6, 2


@dataclass(frozen=True)
class Grasp:
    """Fingertips' position (m) and the horizontal direction along which the fingers close."""

    position: np.ndarray
    fingers: np.ndarray
    rim: bool


@dataclass(frozen=True)
class Slide:
    """A drawer: its handle (m), the unit axes of the handle's bar and of pulling it open.

    open_by, shut_by: how far (m) it still moves to be shut, to be open.
    """

    handle: np.ndarray
    bar: np.ndarray
    pull: np.ndarray
    open_by: float
    shut_by: float


@dataclass(frozen=True)
class Hinge:
    """A joint that turns: a point on its axis (m), the unit axis, what it moves, its angles."""

    anchor: np.ndarray
    axis: np.ndarray
    points: np.ndarray
    at: float
    shut_at: float = 0.0


class Geometry:
    """Collision shapes as points, in metres and world axes, at the current moment."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.model = env.sim.model._model
        self.data = env.sim.data._data
        self._geoms: Dict[int, List[int]] = {}
        self.home_fingers = self.gripper()[1]

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

    def parts(self, name: str) -> List[np.ndarray]:
        """The points of each shape of an object, [n, 3] apiece."""
        return [self._geom_points(geom) for geom in self._geoms_of(self.env.obj_body_id[name])]

    def other_points(self, name: str) -> np.ndarray:
        """The points of every object and fixture but one; float [n, 3]."""
        names = [other for other in self.env.obj_body_id if other != name]
        shapes = [self.object_points(other) for other in names if self._has_shape(other)]
        return np.concatenate(shapes) if shapes else np.zeros((0, 3))

    def origin(self, name: str) -> np.ndarray:
        return np.array(self.data.xpos[self.env.obj_body_id[name]])

    def site(self, name: str) -> np.ndarray:
        return np.array(self.env.sim.data.get_site_xpos(name))

    def holds(self, *predicate: str) -> bool:
        """Whether a goal predicate is fulfilled now."""
        return bool(self.env._eval_predicate(predicate))

    def is_site(self, name: str) -> bool:
        return name in self.env.object_sites_dict

    def is_container(self, site: str) -> bool:
        """Whether things are dropped in from above its walls."""
        return "contain" in site or self._is_drawer(site)

    def is_shut(self, target: str) -> bool:
        return self.is_site(target) and self._is_drawer(target) and not self.holds("open", target)

    def _is_drawer(self, site: str) -> bool:
        joints = self.env.object_sites_dict[site].joints or ()
        return any("level" in joint for joint in joints)

    def site_body_points(self, site: str) -> np.ndarray:
        return self.body_points(self._site_body(site))

    def _site_body(self, site: str) -> int:
        return int(self.model.site_bodyid[self.env.sim.model.site_name2id(site)])

    def surface(self, site: str, place: np.ndarray) -> float:
        """Height (m) of the highest shape of the site's body that lies under a place."""
        heights = [float(place[2])]
        for geom in self._geoms_of(self._site_body(site)):
            points = self._geom_points(geom)[:, :]
            low, high = points.min(0), points.max(0)
            if (low[:2] < place[:2]).all() and (place[:2] < high[:2]).all():
                heights.append(float(high[2]))
        return max(heights)

    def free_spot(self, site: str, name: str) -> np.ndarray:
        """The place on a site that is farthest from other objects; its middle when it is empty.

        The middle is left free where more than one object has to fit.
        """
        goals = [goal for goal in self.env.parsed_problem["goal_state"] if goal[-1] == site]
        spots = _SPOTS if len(goals) < 2 else _SPOTS[1:]
        centre, size = self.site(site), self.env.object_sites_dict[site].size
        others = [self.origin(other) for other in self.env.objects_dict if other != name]
        places = [centre + [x * size[0], y * size[1], 0] for x, y in spots]
        return max(places, key=lambda place: min([0.12] + [_flat(place - o) for o in others]))

    def highest_between(self, name: str, start: np.ndarray, end: np.ndarray) -> float:
        """Height (m) of the tallest other thing within a hand's length of a straight way."""
        points, way = self.other_points(name), (end - start)[:2]
        share = np.clip((points[:, :2] - start[:2]) @ way / max(way @ way, 1e-9), 0, 1)
        nearest = start[:2] + share[:, None] * way
        close = np.linalg.norm(points[:, :2] - nearest, axis=1) < HAND[0]
        return float(points[close, 2].max()) if close.any() else 0.0

    def roomiest_fingers(self, name: str, position: np.ndarray) -> np.ndarray:
        """A finger axis near the starting one with which the hand fits between other things."""
        others = self.other_points(name)
        start = float(np.arctan2(self.home_fingers[1], self.home_fingers[0]))
        turns = sorted(np.linspace(-np.pi / 2, np.pi / 2, 13), key=abs)
        grasps = [Grasp(position, horizontal(start + turn), rim=False) for turn in turns]
        free = [grasp for grasp in grasps if not _hand_collides(grasp, others, 0.0)]
        return (free or grasps)[0].fingers

    def joint(self, name: str) -> Hinge:
        index = self.env.sim.model.joint_name2id(name)
        body = int(self.model.jnt_bodyid[index])
        at = float(self.data.qpos[self.model.jnt_qposadr[index]])
        anchor, axis = np.array(self.data.xanchor[index]), np.array(self.data.xaxis[index])
        return Hinge(anchor, axis, self.body_points(body), at)

    def drawer(self, site: str) -> Slide:
        """The drawer that a site belongs to."""
        region = self.env.object_sites_dict[site]
        joint = self.joint(region.joints[0])
        limits = self.env.get_object(region.parent_name).object_properties["articulation"]
        opened = max(abs(at) for at in limits["default_open_ranges"])
        pull = joint.axis * np.sign(sum(limits["default_open_ranges"]))
        shapes = [self._geom_points(geom) for geom in self._geoms_of(self._site_body(site))]
        bar = max(shapes, key=lambda points: float((points @ pull).max()))
        along = np.cross(pull, [0.0, 0.0, 1.0])
        return Slide(middle(bar), along, pull, abs(joint.at), opened - abs(joint.at))

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


_SPOTS = ((0.0, 0.0), (-0.6, 0.0), (0.6, 0.0), (0.0, -0.6), (0.0, 0.6))
"""Places on a site, in halves of its size."""


def _flat(offset: np.ndarray) -> float:
    return float(np.linalg.norm(offset[:2]))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def narrow_axis(points: np.ndarray) -> np.ndarray:
    """The horizontal direction in which points [n, 3] extend least."""
    angles = np.linspace(0, np.pi, 36, endpoint=False)
    axes = np.stack([np.cos(angles), np.sin(angles), np.zeros(36)], 1)
    return axes[np.ptp(points @ axes.T, axis=0).argmin()]


def middle(points: np.ndarray) -> np.ndarray:
    """The centre of the points' bounding box."""
    return (points.max(0) + points.min(0)) / 2


def horizontal(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle), 0.0])


def turn_between(one: np.ndarray, other: np.ndarray) -> float:
    """The angle between two finger axes, which have no sign (rad, at most pi/2)."""
    return float(np.arccos(np.clip(abs(one @ other), 0.0, 1.0)))


def grasp_of(geometry: Geometry, name: str, attempt: int, place: np.ndarray) -> Grasp:
    """Around the object where it is narrow enough for the fingers, else at its rim.

    The hand has to fit between other things, here and at the object's new place. Later
    attempts take the next best.
    """
    points, others = geometry.object_points(name), geometry.other_points(name)
    now = geometry.home_fingers
    moved = place - np.array([*geometry.origin(name)[:2], points[:, 2].min()])
    grasps = _pinches(points, now) or _handle_grasps(geometry, name) or _rim_grasps(points, now)
    costs = [
        0.02 * turn_between(grasp.fingers, now)
        + (np.ptp(points @ grasp.fingers) if not grasp.rim else -_room(grasp, others))
        + 0.1 * _hand_collides(grasp, others, 0.0)
        + 0.1 * _hand_collides(grasp, others, moved)
        for grasp in grasps
    ]
    ranked = _distinct([grasps[i] for i in np.argsort(costs, kind="stable")])
    return ranked[attempt % len(ranked)]


def _pinches(points: np.ndarray, now: np.ndarray) -> List[Grasp]:
    """Fingers on both sides of the middle, in every direction in which they reach around."""
    position = middle(points)
    top, bottom = points[:, 2].max(), points[:, 2].min()
    position[2] = max(position[2], top - FINGER_DEPTH, bottom + 0.006)
    axes = [horizontal(angle) for angle in np.linspace(0, np.pi, 36, endpoint=False)]
    axes = [axis if axis @ now > 0 else -axis for axis in axes]
    return [Grasp(position, axis, rim=False) for axis in axes if np.ptp(points @ axis) < OPENING]


def _handle_grasps(geometry: Geometry, name: str) -> List[Grasp]:
    """At the thin part that sticks out farthest; none for what is hollow, which has a rim."""
    points = geometry.object_points(name)
    top = points[points[:, 2] > points[:, 2].max() - RIM_DEPTH]
    if np.linalg.norm((top - middle(top))[:, :2], axis=1).min() > 0.02:
        return []
    thin = [part for part in geometry.parts(name) if np.ptp(part @ narrow_axis(part)) < THIN]
    if not thin:
        return []
    handle = max(thin, key=lambda part: _flat(middle(part) - geometry.origin(name)))
    return [Grasp(middle(handle), narrow_axis(handle), rim=False)]


def _rim_grasps(points: np.ndarray, now: np.ndarray) -> List[Grasp]:
    """One finger inside, one outside, all around."""
    rim = points[points[:, 2] > points[:, 2].max() - RIM_DEPTH]
    start = float(np.arctan2(now[1], now[0]))
    turns = np.linspace(-np.pi, np.pi, 25)[:-1]
    return [_at_rim(rim, horizontal(start + turn)) for turn in turns]


def _hand_collides(grasp: Grasp, others: np.ndarray, moved: Any) -> bool:
    """Whether the hand above the fingers would be inside another thing."""
    offset = others - (grasp.position + moved)
    along = np.abs(offset @ grasp.fingers)
    across = np.abs(offset @ np.cross(DOWN, grasp.fingers))
    above = (offset[:, 2] > 0.04) & (offset[:, 2] < 0.25)
    return bool(((along < HAND[0]) & (across < HAND[1]) & above).any())


def _at_rim(rim: np.ndarray, axis: np.ndarray) -> Grasp:
    centre = middle(rim)
    radius = float((rim @ axis).max() - centre @ axis)
    position = centre + axis * (radius - 0.006)
    position[2] = rim[:, 2].max() - RIM_DEPTH
    return Grasp(position, axis, rim=True)


def _room(grasp: Grasp, others: np.ndarray) -> float:
    """Distance (m, at most 0.06) from where the outer finger goes down to what stands there."""
    outside = grasp.position + grasp.fingers * 0.035
    others = others[others[:, 2] > grasp.position[2] - 0.02]
    return min([0.06, *np.linalg.norm(others[:, :2] - outside[:2], axis=1)])


def _distinct(ranked: List[Grasp]) -> List[Grasp]:
    """Of each set of neighbouring places the best: those at least 45 degrees apart."""
    kept: List[Grasp] = []
    for grasp in ranked:
        if all(grasp.fingers @ other.fingers < 0.71 for other in kept):
            kept.append(grasp)
    return kept
