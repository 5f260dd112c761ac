"""Exact depth and segments of what `envs.tabletop.render` shows."""

from __future__ import annotations

from typing import Tuple

import numpy as np

from envs.tabletop import (
    BLOCK_HALF,
    BLOCK_TOP,
    MARKER_HALF,
    PIXELS,
    Scene,
    marker,
    pixel,
    square,
)

CAMERA_Z = 0.5
"""Metres above the table from which depth is measured."""


def maps(scene: Scene) -> Tuple[np.ndarray, np.ndarray, Tuple[str, ...]]:
    """Depth float32 [224, 224] in metres, segments uint8 [224, 224], and what these show.

    A segment is 1 + the index of its name, and 0 for the table. The gripper is its marker.
    """
    depth = np.full((PIXELS, PIXELS), CAMERA_Z, np.float32)
    segments = np.zeros((PIXELS, PIXELS), np.uint8)
    places = [((pixel(x), PIXELS - pixel(y)), BLOCK_HALF, BLOCK_TOP) for x, y in scene.blocks]
    places.append((marker(scene), MARKER_HALF, float(scene.gripper[2])))
    for number, ((column, row), half, top) in enumerate(places, 1):
        square(depth, column, row, half, CAMERA_Z - top)
        square(segments, column, row, half, number)
    return depth, segments, (*(f"{colour} block" for colour in scene.colours), "gripper")
