"""The scripted expert of `tabletop`: a function of what the image shows, so it can be imitated."""

from __future__ import annotations

from typing import List

import numpy as np

from envs import tabletop as table
from envs.api import ACTION_DIM, Demonstration

GAIN = 0.25
"""Share of the remaining way taken per step: small corrections are as frequent as large."""
NOISE = 0.2
"""Standard deviation of the executed action around the label: visits states off the path."""
HOVER = 0.08
STAND_OFF = 0.06
HOLD = 2
"""Steps recorded after success, so that the chunk's end is learnt too."""


def act(task: str, scene: table.Scene) -> np.ndarray:
    """float32 [7], from the scene alone."""
    goal, close = {"reach": _reach, "push": _push, "pick-and-place": _place}[task](scene)
    way = (goal - scene.gripper) * GAIN / table.STEP
    action = np.zeros(ACTION_DIM, np.float32)
    action[:3] = way / max(1.0, float(np.abs(way).max()))
    action[6] = 1.0 if close else -1.0
    return action


def _reach(scene: table.Scene) -> "tuple[np.ndarray, bool]":
    return scene.grasp_point(scene.target), False


def _push(scene: table.Scene) -> "tuple[np.ndarray, bool]":
    """Hover before the block, come down, then push away from the robot; always closed."""
    x, y = scene.block()
    gx, gy, gz = scene.gripper
    in_lane = abs(gx - x) < 0.018 and gy < y - 0.02
    if in_lane and gz < 0.038:
        return np.array([x, y + 0.08, 0.025]), True
    if in_lane and gy < y - 0.045:
        return np.array([x, y - STAND_OFF, 0.005]), True
    return np.array([x, y - STAND_OFF - 0.005, HOVER]), True


def _place(scene: table.Scene) -> "tuple[np.ndarray, bool]":
    """Go to the block, grasp it, carry it over the tray, let go."""
    target = scene.grasp_point(scene.target)
    if scene.held == scene.target:
        over = scene.gripper[1] < table.TRAY_DEPTH - 0.012
        return np.array([scene.gripper[0], 0.02, 0.06]), not over
    near = np.abs(target[:2] - scene.gripper[:2]).max() < 0.014 and scene.gripper[2] < 0.035
    return target, bool(near)


def demonstrate(task: str, initial_state: int, seed: int) -> Demonstration:
    """One episode with noisy execution and clean labels (Laskey et al. 2017, DART)."""
    rng = np.random.default_rng([7, seed, initial_state])
    scene = table.sample_scene(task, initial_state)
    start = scene.block().copy()
    images: List[np.ndarray] = []
    actions: List[np.ndarray] = []
    left = HOLD
    while len(actions) < table.STEP_LIMIT and left > 0:
        images.append(table.render(scene))
        actions.append(act(task, scene))
        done = table.succeeded(task, scene, start)
        noise = np.append(rng.normal(0, 0.0 if done else NOISE, 3), np.zeros(4))
        table.advance(scene, actions[-1] + noise)
        left -= int(done)
    return Demonstration(
        instruction=table.instruction(task, scene),
        images=np.stack(images),
        actions=np.stack(actions),
        success=table.succeeded(task, scene, start) or left <= 0,
        steps=len(actions),
    )
