"""Frames to the policies' size, with numpy alone and the same bytes on every machine.

Integer arithmetic after Pillow's `resize(..., BICUBIC)`, bit for bit (a test compares the two),
so that a frame scaled inside a simulator's child equals one scaled by a dataset's reader.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Tuple

import numpy as np

_BITS = 22
"""Fraction bits of a weight: 8-bit pixels times weights still fit 32 bits."""
_SUPPORT = 2.0
_A = -0.5
"""The cubic's sharpness."""


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Squash an image uint8 [H, W, 3] to [side, side, 3]; antialiased when it shrinks."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"cannot resize {image.dtype} {list(image.shape)}: expected uint8 [H, W, 3]"
        )
    wide = _resample(image.transpose(1, 0, 2), side).transpose(1, 0, 2)
    return _resample(wide, side)


def _resample(rows: np.ndarray, count: int) -> np.ndarray:
    """Resample the first axis of uint8 [n, ...] to `count`; the result is contiguous."""
    if len(rows) == count:
        return np.ascontiguousarray(rows)
    indices, weights = _taps(len(rows), count)
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).astype(np.int32)
    total = np.full((count, flat.shape[1]), 1 << (_BITS - 1), np.int32)
    term = np.empty_like(total)
    for tap in range(indices.shape[1]):
        # mode="clip" lets numpy write straight into `out`; every index is in range.
        np.take(flat, indices[:, tap], axis=0, out=term, mode="clip")
        term *= weights[:, tap, None]
        total += term
    pixels = np.clip(total >> _BITS, 0, 255).astype(np.uint8)
    return pixels.reshape((count,) + rows.shape[1:])


@lru_cache(maxsize=None)
def _taps(size: int, count: int) -> Tuple[np.ndarray, np.ndarray]:
    """For each output row its source rows int [count, taps] and weights int32 [count, taps]."""
    scale = size / count
    shrink = max(scale, 1.0)
    reach = _SUPPORT * shrink
    taps = math.ceil(reach) * 2 + 1
    indices = np.zeros((count, taps), np.int64)
    weights = np.zeros((count, taps), np.int32)
    for row in range(count):
        centre = (row + 0.5) * scale
        first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), size)
        cubic = [_cubic((source - centre + 0.5) * (1.0 / shrink)) for source in range(first, last)]
        indices[row, : last - first] = range(first, last)
        weights[row, : last - first] = [_fixed(value * (1.0 / sum(cubic))) for value in cubic]
    return indices, weights


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1.0:
        return ((_A + 2.0) * x - (_A + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * _A if x < 2.0 else 0.0


def _fixed(value: float) -> int:
    return int(math.copysign(0.5, value) + value * (1 << _BITS))
