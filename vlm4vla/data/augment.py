"""Augmentation of one sample, from a generator that depends on (seed, step, slot) alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SHIFT = 10 / 224
"""Random shift, as a share of the image's side: padding by 10 px at 224 (official code)."""

Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def none(
    image: np.ndarray, actions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    return image, actions


def shift(
    image: np.ndarray, actions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Move image uint8 [H, W, 3] by up to 10/224 of its side; edges are repeated."""
    reach = max(1, round(SHIFT * len(image)))
    rows, columns = rng.integers(-reach, reach + 1, 2)
    height, width = image.shape[:2]
    picked_rows = np.clip(np.arange(height) + rows, 0, height - 1)
    picked_columns = np.clip(np.arange(width) + columns, 0, width - 1)
    return image[picked_rows][:, picked_columns], actions


def mirror(
    image: np.ndarray, actions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Half the time left becomes right: for scenes that are symmetric, such as `tabletop`."""
    if rng.random() < 0.5:
        return image, actions
    flipped = actions.copy()
    flipped[:, 0] *= -1
    return image[:, ::-1], flipped


AUGMENTATIONS: dict[str, tuple[Augment, ...]] = {
    "none": (),
    "shift": (shift,),
    "mirror": (mirror,),
    "mirror+shift": (mirror, shift),
}


def apply(
    name: str, image: np.ndarray, actions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """image uint8 [H, W, 3], raw actions float32 [k, 7]."""
    for step in AUGMENTATIONS[name]:
        image, actions = step(image, actions, rng)
    return image, actions
