"""A scripted expert for LIBERO: it sees the simulator's state and moves between waypoints.

A task's goal is a list of predicates. For each that does not hold, a skill yields waypoints,
planned from what the simulator shows at that moment; what failed is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import numpy as np

from envs.experts.libero_geometry import DOWN, Geometry, grasp_of

OPEN, CLOSED = -1.0, 1.0
ATTEMPTS = 4
STALL, PROGRESS = 8, 5e-4
METRES_PER_STEP, RADIANS_PER_STEP = 0.05, 0.5
CLEARANCE = 0.10
"""How far above things the gripper travels (m)."""


@dataclass(frozen=True)
class Waypoint:
    """Fingertips' position (m), finger and approach axes, and how to get there.

    dwell: steps to stay once there, for the fingers to close or open.
    Where the way is blocked, the next waypoint is taken after STALL steps without progress.
    """

    position: np.ndarray
    fingers: np.ndarray
    grip: float
    approach: np.ndarray = field(default_factory=DOWN.copy)
    dwell: int = 0
    tolerance: float = 0.012
    speed: float = 0.9


Skill = Iterator[Waypoint]


class Expert:
    """Acts on one episode of a task whose environment has just settled."""

    def __init__(self, env: Any) -> None:
        self.geometry = Geometry(env)
        self.goals: List[Sequence[str]] = env.parsed_problem["goal_state"]
        self.finished = False
        self._plan = self._waypoints()
        self._waypoint: Optional[Waypoint] = None
        self._stalled = self._dwelt = 0
        self._least = np.inf
        self._next()

    def act(self) -> np.ndarray:
        """float32 [7] in LIBERO's ActionSpec, towards the current waypoint."""
        assert self._waypoint is not None
        way, turn = self._errors(self._waypoint)
        action = np.zeros(7, np.float32)
        action[:3] = np.clip(way / METRES_PER_STEP * self._waypoint.speed, -1, 1)
        action[3:6] = np.clip(turn / RADIANS_PER_STEP * 0.8, -1, 1)
        action[6] = self._waypoint.grip
        self._advance(self._waypoint, way, turn)
        return action

    def _errors(self, waypoint: Waypoint) -> "tuple[np.ndarray, np.ndarray]":
        position, fingers, approach = self.geometry.gripper()
        wanted = waypoint.fingers if waypoint.fingers @ fingers > 0 else -waypoint.fingers
        turn = rotation_between((fingers, approach), (wanted, waypoint.approach))
        return waypoint.position - position, turn

    def _advance(self, waypoint: Waypoint, way: np.ndarray, turn: np.ndarray) -> None:
        distance, angle = float(np.linalg.norm(way)), float(np.linalg.norm(turn))
        left = distance + 0.05 * angle
        self._stalled = 0 if left < self._least - PROGRESS else self._stalled + 1
        self._least = min(self._least, left)
        there = distance < waypoint.tolerance and angle < 0.1
        if there or self._stalled > STALL or self._dwelt:
            self._dwelt += 1
        if self._dwelt > waypoint.dwell:
            self._next()

    def _next(self) -> None:
        self._stalled = self._dwelt = 0
        self._least = np.inf
        waypoint = next(self._plan, None)
        self.finished = waypoint is None
        self._waypoint = waypoint or self._waypoint

    def _waypoints(self) -> Skill:
        for attempt in range(ATTEMPTS):
            for goal in self.goals:
                if not self.geometry.env._eval_predicate(goal):
                    yield from SKILLS[goal[0]](self.geometry, attempt, *goal[1:])


def rotation_between(
    now: "tuple[np.ndarray, np.ndarray]", wanted: "tuple[np.ndarray, np.ndarray]"
) -> np.ndarray:
    """The rotation vector (rad, world axes) that takes one (fingers, approach) to another."""
    frames = [np.stack([f, np.cross(a, f), a], 1) for f, a in (now, wanted)]
    turn = frames[1] @ frames[0].T
    vector = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    sine = np.linalg.norm(vector) / 2
    angle = np.arctan2(sine, (np.trace(turn) - 1) / 2)
    return vector * (angle / max(2 * sine, 1e-9))


def put(geometry: Geometry, attempt: int, name: str, target: str) -> Skill:
    """Grasp an object, carry it above a target and let go."""
    yield from lift(geometry, attempt, name)
    grip, fingers, _ = geometry.gripper()
    if grip[2] - geometry.object_points(name)[:, 2].max() > 0.03:
        return  # nothing in the hand: the next attempt plans anew
    place = resting_place(geometry, target)
    over = place - hanging(geometry, name)
    over[2] = max(over[2] + 0.03, grip[2])
    yield Waypoint(np.array([*grip[:2], over[2]]), fingers, CLOSED)
    yield Waypoint(over, fingers, CLOSED, speed=0.5)
    goal = place - hanging(geometry, name)  # it may have turned or slipped on the way
    yield Waypoint(goal, fingers, CLOSED, speed=0.5)
    yield Waypoint(goal, fingers, OPEN, dwell=8)
    yield Waypoint(goal + [0, 0, CLEARANCE], fingers, OPEN)


def hanging(geometry: Geometry, name: str) -> np.ndarray:
    """From the fingertips to the held object's origin, at the height of its lowest point (m).

    LIBERO's predicates compare origins; a bowl held by its rim hangs askew.
    """
    lowest = geometry.object_points(name)[:, 2].min()
    return np.array([*geometry.origin(name)[:2], lowest]) - geometry.gripper()[0]


def lift(geometry: Geometry, attempt: int, name: str) -> Skill:
    """Close the fingers around an object and raise it."""
    grasp = grasp_of(geometry, name, attempt)
    top = geometry.object_points(name)[:, 2].max()
    above = np.array([*grasp.position[:2], top + CLEARANCE])
    high = np.maximum(above, [-np.inf, -np.inf, geometry.gripper()[0][2] - 0.05])
    yield Waypoint(high, grasp.fingers, OPEN)
    yield Waypoint(grasp.position, grasp.fingers, OPEN)
    yield Waypoint(grasp.position, grasp.fingers, CLOSED, dwell=10)
    yield Waypoint(grasp.position + [0, 0, CLEARANCE + 0.02], grasp.fingers, CLOSED)


def resting_place(geometry: Geometry, target: str) -> np.ndarray:
    """Where an object's lowest point goes: just above a surface, or a container's walls."""
    env = geometry.env
    if target not in env.object_sites_dict:
        points = geometry.object_points(target)
        return np.array([*geometry.origin(target)[:2], points[:, 2].max() + 0.005])
    place = geometry.site(target)
    parent = env.object_sites_dict[target].parent_name
    if "contain" in target:
        place[2] = geometry.object_points(parent)[:, 2].max() + 0.02
    else:
        place[2] += 0.03
    return place


SKILLS: Dict[str, Callable[..., Skill]] = {"in": put, "on": put}
"""Skill of each goal predicate; its arguments follow the geometry."""
