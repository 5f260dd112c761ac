"""What the LIBERO expert reads from the simulator: shapes, poses, joints and regions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import numpy as np

DOWN = np.array([0.0, 0.0, -1.0])
MESH, BOX, SPHERE = 7, 6, 2


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
        return np.concatenate([self.geom_points(geom) for geom in self._geoms_of(body)])

    def parts(self, name: str) -> List[np.ndarray]:
        """The points of each shape of an object, [n, 3] apiece."""
        return [self.geom_points(geom) for geom in self._geoms_of(self.env.obj_body_id[name])]

    def other_points(self, name: str) -> np.ndarray:
        """The points of every object and fixture but one; float [n, 3]."""
        names = [other for other in self.env.obj_body_id if other != name]
        shapes = [self.object_points(other) for other in names if self._has_shape(other)]
        return np.concatenate(shapes) if shapes else np.zeros((0, 3))

    def origin(self, name: str) -> np.ndarray:
        return np.array(self.data.xpos[self.env.obj_body_id[name]])

    def up(self, name: str) -> np.ndarray:
        """The object's own axis that is nearest to the vertical, pointing up."""
        axes = self.data.xmat[self.env.obj_body_id[name]].reshape(3, 3).T
        axis = max(axes, key=lambda axis: abs(axis[2]))
        return np.array(axis * np.sign(axis[2]))

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
            points = self.geom_points(geom)[:, :]
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
        return max(places, key=lambda place: min([0.12] + [flat(place - o) for o in others]))

    def highest_between(self, name: str, start: np.ndarray, end: np.ndarray, width: float) -> float:
        """Height (m) of the tallest other thing within `width` of a straight way."""
        points, way = self.other_points(name), (end - start)[:2]
        share = np.clip((points[:, :2] - start[:2]) @ way / max(way @ way, 1e-9), 0, 1)
        nearest = start[:2] + share[:, None] * way
        close = np.linalg.norm(points[:, :2] - nearest, axis=1) < width
        return float(points[close, 2].max()) if close.any() else 0.0

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
        shapes = [self.geom_points(geom) for geom in self._geoms_of(self._site_body(site))]
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

    def geom_points(self, geom: int) -> np.ndarray:
        """Float [n, 3] on one shape."""
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


def flat(offset: np.ndarray) -> float:
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
