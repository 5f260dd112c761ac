"""What the LIBERO expert can do: each skill yields waypoints, planned when it is reached.

Every skill takes the geometry, the number of the attempt and the goal predicate's arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterator

import numpy as np

from envs.experts.libero_geometry import DOWN, Geometry, narrow_axis, unit
from envs.experts.libero_grasps import HAND, Grasp, grasp_of, roomiest_fingers

OPEN, CLOSED = -1.0, 1.0
CLEARANCE = 0.10
"""How far above things the gripper travels (m)."""
HOOK = 0.01
"""How far beyond a handle's middle the fingertips reach (m), so that they do not slip off."""
PULLS, LEAD = 80, 0.05
"""A pull aims this far (m) ahead of the handle: less does not move it, more slips off."""
FLAT, PRESS, DRAG_LEAD = 0.03, 0.05, 0.06
"""Things lower than this are dragged; how far the fingertips press down and aim ahead (m)."""
LEANING = 0.6
"""Share of DOWN in the approach to a handle: the hand stays clear of what is above it."""


@dataclass(frozen=True)
class Waypoint:
    """Fingertips' position (m), finger and approach axes, and how to get there.

    dwell: steps to stay once there, for the fingers to close or open.
    Where the way is blocked, the next waypoint is taken after STALL steps without progress.
    """

    position: np.ndarray
    fingers: np.ndarray
    grip: float
    approach: np.ndarray = field(default_factory=lambda: DOWN)
    dwell: int = 0
    tolerance: float = 0.012
    speed: float = 0.9


Skill = Iterator[Waypoint]


def put(geometry: Geometry, attempt: int, name: str, target: str) -> Skill:
    """Grasp an object, carry it above a target and let go. Opens the target's drawer first."""
    if geometry.is_shut(target):
        yield from open_(geometry, attempt, target)
        if geometry.is_shut(target):
            return
    place = resting_place(geometry, name, target)
    if is_flat(geometry.object_points(name)):
        yield from drag(geometry, name, place)
        return
    yield from lift(geometry, attempt, name, place)
    grip, fingers, _ = geometry.gripper()
    if not _is_held(geometry, name):
        return  # the next attempt plans anew
    held = hanging(geometry, name)
    over = place - held
    tallest = geometry.highest_between(name, grip, over, HAND[0])
    over[2] = max(over[2] + 0.03, grip[2], tallest - held[2] + 0.03)
    yield Waypoint(np.array([*grip[:2], over[2]]), fingers, CLOSED)
    yield Waypoint(over, fingers, CLOSED, speed=0.5)
    if not _is_held(geometry, name):
        return
    goal = place - hanging(geometry, name)  # it may have turned or slipped on the way
    yield Waypoint(goal, fingers, CLOSED, speed=0.5)
    yield Waypoint(goal, fingers, OPEN, dwell=8)
    yield Waypoint(goal + [0, 0, CLEARANCE], fingers, OPEN)


def _is_held(geometry: Geometry, name: str) -> bool:
    points, grip = geometry.object_points(name), geometry.gripper()[0]
    beyond = np.maximum(points.min(0) - grip, grip - points.max(0))
    return bool(beyond.max() < 0.03)


def hanging(geometry: Geometry, name: str) -> np.ndarray:
    """From the fingertips to the held object's origin, at the height of its lowest point (m).

    LIBERO's predicates compare origins; a bowl held by its rim hangs askew.
    """
    lowest = geometry.object_points(name)[:, 2].min()
    return np.array([*geometry.origin(name)[:2], lowest]) - geometry.gripper()[0]


def drag(geometry: Geometry, name: str, place: np.ndarray) -> Skill:
    """Press the fingertips onto something flat and wide, and move it along the table."""
    top = geometry.object_points(name)[:, 2].max()
    onto = np.array([*geometry.origin(name)[:2], top + 0.03])
    fingers = roomiest_fingers(geometry, name, onto)
    yield Waypoint(onto + [0, 0, CLEARANCE], fingers, CLOSED)
    yield Waypoint(onto, fingers, CLOSED)
    yield Waypoint(onto - [0, 0, PRESS], fingers, CLOSED)
    for _ in range(PULLS):
        way = place[:2] - geometry.origin(name)[:2]
        if np.linalg.norm(way) < 0.01:
            break
        step = way * min(1.0, DRAG_LEAD / float(np.linalg.norm(way)))
        goal = np.array([*(geometry.gripper()[0][:2] + step), onto[2] - PRESS])
        yield Waypoint(goal, fingers, CLOSED, tolerance=DRAG_LEAD * 0.9)
    yield Waypoint(geometry.gripper()[0] + [0, 0, CLEARANCE], fingers, CLOSED)


def is_flat(points: np.ndarray) -> bool:
    """Too low for a grasp at the rim and too wide for one around."""
    return bool(np.ptp(points[:, 2]) < FLAT and np.ptp(points @ narrow_axis(points)) > 0.1)


def lift(geometry: Geometry, attempt: int, name: str, place: np.ndarray) -> Skill:
    """Close the fingers around an object, so that the hand fits at its new place, and raise it."""
    grasp = grasp_of(geometry, name, place, attempt)
    yield _above(geometry, name, grasp)
    grasp = grasp_of(geometry, name, place, side=grasp.fingers)  # it may have settled meanwhile
    yield Waypoint(grasp.position, grasp.fingers, OPEN)
    yield Waypoint(grasp.position, grasp.fingers, CLOSED, dwell=10)
    yield Waypoint(grasp.position + [0, 0, CLEARANCE + 0.02], grasp.fingers, CLOSED)


def _above(geometry: Geometry, name: str, grasp: Grasp) -> Waypoint:
    """Over a grasp, high enough to pass over whatever stands on the way there."""
    here = geometry.gripper()[0]
    height = max(geometry.object_points(name)[:, 2].max() + CLEARANCE, here[2] - 0.05)
    above = np.array([*grasp.position[:2], height])
    above[2] = max(height, geometry.highest_between(name, here, above, HAND[0]) + 0.03)
    return Waypoint(above, grasp.fingers, OPEN)


def resting_place(geometry: Geometry, name: str, target: str) -> np.ndarray:
    """Where an object's lowest point goes: just above a surface, or a container's walls."""
    if not geometry.is_site(target):
        place = geometry.origin(target)
        place[2] = geometry.object_points(target)[:, 2].max() + 0.015
        return place
    place = geometry.free_spot(target, name)
    if geometry.is_container(target):
        place[2] = geometry.site_body_points(target)[:, 2].max() + 0.02
    else:
        place[2] = geometry.surface(target, place) + 0.005
    return place


def turn_on(geometry: Geometry, attempt: int, name: str) -> Skill:
    """Grasp a stove's knob by its ridge and turn it."""
    hinge = geometry.joint(geometry.env.get_object(name).joints[0])
    ridge = hinge.points[hinge.points[:, 2] > hinge.points[:, 2].max() - 0.02]
    across = narrow_axis(ridge)
    place = np.array([*hinge.anchor[:2], ridge[:, 2].max() - 0.022])
    yield Waypoint(place + [0, 0, CLEARANCE], across, OPEN)
    yield Waypoint(place, across, OPEN, tolerance=0.006)
    yield Waypoint(place, across, CLOSED, dwell=8)
    for angle in (0.5, 1.0, 1.4):
        turned = across * np.cos(angle) + np.cross(hinge.axis, across) * np.sin(angle)
        yield Waypoint(place, turned, CLOSED, dwell=3)
    yield Waypoint(place, turned, OPEN, dwell=6)
    yield Waypoint(place + [0, 0, CLEARANCE], turned, OPEN)


def open_(geometry: Geometry, attempt: int, region: str) -> Skill:
    """Grasp a drawer's handle and pull until LIBERO calls it open."""
    slide = geometry.drawer(region)
    approach = unit(DOWN * LEANING - slide.pull)
    across = unit(np.cross(slide.bar, approach))
    front = slide.handle - approach * 0.08
    yield Waypoint(front + [0, 0, CLEARANCE], across, OPEN, approach)
    yield Waypoint(front, across, OPEN, approach)
    hooked = slide.handle + approach * HOOK
    yield Waypoint(hooked, across, OPEN, approach, tolerance=0.006)
    yield Waypoint(hooked, across, CLOSED, approach, dwell=8)
    for _ in range(PULLS):
        slide = geometry.drawer(region)
        pulled = slide.handle + approach * HOOK + slide.pull * LEAD
        slipped = (geometry.gripper()[0] - slide.handle) @ slide.pull > 0.03
        if slide.shut_by < -0.01 or slipped:
            break
        yield Waypoint(pulled, across, CLOSED, approach, tolerance=0.02)
    yield Waypoint(pulled, across, OPEN, approach, dwell=5)
    yield Waypoint(pulled - approach * 0.08, across, OPEN, approach)


def close(geometry: Geometry, attempt: int, region: str) -> Skill:
    """Push a drawer or a door shut with the closed fingers."""
    if geometry.is_site(region):
        yield from _push_drawer(geometry, region)
    else:
        yield from _push_door(geometry, region)


def _push_drawer(geometry: Geometry, region: str) -> Skill:
    slide = geometry.drawer(region)
    approach = unit(DOWN - LEANING * slide.pull)
    across = unit(np.cross(slide.pull, approach))
    front = slide.handle + slide.pull * 0.06
    yield Waypoint(front + [0, 0, CLEARANCE * 2], across, CLOSED, approach)
    yield Waypoint(front, across, CLOSED, approach)
    yield Waypoint(slide.handle - slide.pull * (slide.open_by + 0.03), across, CLOSED, approach)
    yield Waypoint(front, across, CLOSED, approach)


def _push_door(geometry: Geometry, name: str) -> Skill:
    """Follow the door's outer side along its arc."""
    door = geometry.joint(geometry.env.get_object(name).joints[0])
    arm = door.points.mean(0) - door.anchor
    arm = arm - door.axis * (arm @ door.axis)
    reach = arm * 1.5
    inward = np.cross(door.axis, arm) * np.sign(door.shut_at - door.at)
    height = door.anchor * [1, 1, 0] + [0, 0, door.points[:, 2].max() - 0.03]
    first, last = -0.35, abs(door.shut_at - door.at)
    for angle in np.linspace(first, last, 8):
        swung = reach * np.cos(angle) + np.cross(door.axis, reach) * np.sin(angle) * np.sign(
            door.shut_at - door.at
        )
        if angle == first:
            yield Waypoint(height + swung + [0, 0, CLEARANCE], unit(inward), CLOSED)
        yield Waypoint(height + swung, unit(inward), CLOSED, speed=0.6)
