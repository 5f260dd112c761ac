"""A scripted expert for LIBERO: it sees the simulator's state and moves between waypoints.

A task's goal is a list of predicates. For each that does not hold, a skill yields waypoints,
planned from what the simulator shows at that moment; what failed is tried again.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np

from envs.experts.libero_geometry import DOWN, Geometry
from envs.experts.libero_skills import Skill, Waypoint, close, open_, put, turn_on

ATTEMPTS = 6
STALL, PROGRESS = 8, 5e-4
METRES_PER_STEP, RADIANS_PER_STEP = 0.05, 0.5
SKILLS: Dict[str, Callable[..., Skill]] = {
    "open": open_,
    "turnon": turn_on,
    "in": put,
    "on": put,
    "close": close,
}
"""Skill of each goal predicate, in the order in which goals are served."""


class Expert:
    """Acts on one episode of a task whose environment has just settled."""

    def __init__(self, env: Any) -> None:
        self.geometry = Geometry(env)
        order = list(SKILLS)
        self.goals: List[Sequence[str]] = sorted(
            env.parsed_problem["goal_state"], key=lambda goal: order.index(goal[0])
        )
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
        # Fingers are alike, so an axis has no sign; the wrist stays within a quarter turn of
        # where it began whenever the hand points down.
        near = self.geometry.home_fingers if waypoint.approach is DOWN else fingers
        wanted = waypoint.fingers if waypoint.fingers @ near > 0 else -waypoint.fingers
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
                if not self.geometry.holds(*goal):
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
