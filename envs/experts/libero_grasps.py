"""Where the LIBERO expert can take hold of a thing, and which way its hand fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional

import numpy as np

from envs.experts.libero_geometry import DOWN, Geometry, flat, middle, narrow_axis, unit

OPENING = 0.072
"""Widest thing that the fingers are put around (m); they open to 0.08."""
FINGER_DEPTH = 0.045
"""How far below an object's top the fingertips reach at most (m)."""
RIM_DEPTH, WALL, THIN = 0.02, 0.006, 0.03
"""Fingers reach this deep over a rim, this far inside its edge; a handle is thinner (m)."""
BLOCKED = 0.1
"""Cost of a grasp that cannot be reached; costs are in metres."""
HAND = (0.11, 0.04)
"""Half the hand's length along and across the fingers' axis (m)."""


@dataclass(frozen=True)
class Grasp:
    """Fingertips' position (m) and the horizontal direction along which the fingers close."""

    position: np.ndarray
    fingers: np.ndarray
    rim: bool


def grasp_of(
    geometry: Geometry,
    name: str,
    place: np.ndarray,
    attempt: int = 0,
    side: Optional[np.ndarray] = None,
) -> Grasp:
    """Around the object where it is narrow enough for the fingers, else at its rim.

    The hand has to fit between other things, here and at the object's new place. Later
    attempts take the next best. `side` asks for a direction of the fingers chosen before.
    """
    points, others = geometry.object_points(name), geometry.other_points(name)
    now = geometry.home_fingers
    moved = place - np.array([*geometry.origin(name)[:2], points[:, 2].min()])
    grasps = _pinches(points, now) or _handle_grasps(geometry, name) or _rim_grasps(geometry, name)
    if side is not None:
        return max(grasps, key=lambda grasp: float(grasp.fingers @ side))
    costs = [
        0.02 * turn_between(grasp.fingers, now)
        + _tightness(grasp, points, others)
        + BLOCKED * _hand_collides(grasp, others, 0.0)
        + BLOCKED * _hand_collides(grasp, others, moved)
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
    top = _top(geometry, name)
    if np.linalg.norm((top - middle(top))[:, :2], axis=1).min() > 0.02:
        return []
    thin = [part for part in geometry.parts(name) if np.ptp(part @ narrow_axis(part)) < THIN]
    if not thin:
        return []
    handle = max(thin, key=lambda part: flat(middle(part) - geometry.origin(name)))
    return [Grasp(middle(handle), narrow_axis(handle), rim=False)]


def _top(geometry: Geometry, name: str) -> np.ndarray:
    """The object's uppermost points; also of one that stands askew."""
    points = geometry.object_points(name)
    heights = points @ geometry.up(name)
    return points[heights > heights.max() - RIM_DEPTH]


def _rim_grasps(geometry: Geometry, name: str) -> List[Grasp]:
    """One finger inside, one outside, all around."""
    rim, up = _top(geometry, name), geometry.up(name)
    start = float(np.arctan2(geometry.home_fingers[1], geometry.home_fingers[0]))
    turns = np.linspace(-np.pi, np.pi, 25)[:-1]
    return [_at_rim(rim, up, horizontal(start + turn)) for turn in turns]


def _at_rim(rim: np.ndarray, up: np.ndarray, axis: np.ndarray) -> Grasp:
    """Where the rim is cut by a vertical plane through its middle along a horizontal axis."""
    outward = unit(axis - up * (axis @ up))
    centre = middle(rim)
    centre = centre + up * ((rim - centre) @ up).max()
    radius = float(((rim - centre) @ outward).max())
    position = centre + outward * (radius - WALL) + DOWN * RIM_DEPTH
    return Grasp(position, axis, rim=True)


def _hand_collides(grasp: Grasp, others: np.ndarray, moved: Any) -> bool:
    """Whether the hand above the fingers would be inside another thing."""
    offset = others - (grasp.position + moved)
    along = np.abs(offset @ grasp.fingers)
    across = np.abs(offset @ np.cross(DOWN, grasp.fingers))
    above = (offset[:, 2] > 0.03) & (offset[:, 2] < 0.25)
    return bool(((along < HAND[0]) & (across < HAND[1]) & above).any())


def _tightness(grasp: Grasp, points: np.ndarray, others: np.ndarray) -> float:
    """Cost (m): how wide the fingers open, or how little room the outer one has at a rim."""
    if not grasp.rim:
        return float(np.ptp(points @ grasp.fingers))
    outside = grasp.position + grasp.fingers * 0.04
    others = others[others[:, 2] > grasp.position[2] - 0.02]
    room = min([0.06, *np.linalg.norm(others[:, :2] - outside[:2], axis=1)])
    return BLOCKED * (room < 0.015) - room


def _distinct(ranked: List[Grasp]) -> List[Grasp]:
    """Of each set of neighbouring places the best: those at least 45 degrees apart."""
    kept: List[Grasp] = []
    for grasp in ranked:
        if all(grasp.fingers @ other.fingers < 0.71 for other in kept):
            kept.append(grasp)
    return kept


def roomiest_fingers(geometry: Geometry, name: str, position: np.ndarray) -> np.ndarray:
    """A finger axis near the starting one with which the hand fits between other things."""
    others = geometry.other_points(name)
    start = float(np.arctan2(geometry.home_fingers[1], geometry.home_fingers[0]))
    turns = sorted(np.linspace(-np.pi / 2, np.pi / 2, 13), key=abs)
    grasps = [Grasp(position, horizontal(start + turn), rim=False) for turn in turns]
    free = [grasp for grasp in grasps if not _hand_collides(grasp, others, 0.0)]
    return (free or grasps)[0].fingers


def horizontal(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle), 0.0])


def turn_between(one: np.ndarray, other: np.ndarray) -> float:
    """The angle between two finger axes, which have no sign (rad, at most pi/2)."""
    return float(np.arccos(np.clip(abs(one @ other), 0.0, 1.0)))
