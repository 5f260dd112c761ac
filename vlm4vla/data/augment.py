"""Augmentation of one sample, from a generator that depends on (seed, step, slot) alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SHIFT = 10 / 224
"""Random shift, as a share of the image's side: padding by 10 px at 224 (official code)."""

CROP = 0.9
"""Share of the image's area that a random crop keeps."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.2, (0.8, 1.2), (0.8, 1.2), 0.05
"""As the official code's RLDS loader is configured (`random_resized_crop`, `random_brightness`,
… of OpenVLA's image_augment_kwargs), and applied as dlimp's `augment_image` applies them."""

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
    return _moved(_moved(image, rows).swapaxes(0, 1), columns).swapaxes(0, 1), actions


def _moved(rows: np.ndarray, by: int) -> np.ndarray:
    """Rows from `by` on, or from before the first, which is then repeated, as the last one is."""
    out, stay = np.empty_like(rows), len(rows) - abs(by)
    if by >= 0:
        out[:stay], out[stay:] = rows[by:], rows[-1]
    else:
        out[-by:], out[:-by] = rows[:stay], rows[0]
    return out


def mirror(
    image: np.ndarray, actions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Half the time left becomes right: for scenes that are symmetric, such as `tabletop`."""
    if rng.random() < 0.5:
        return image, actions
    flipped = actions.copy()
    flipped[:, 0] *= -1
    return image[:, ::-1], flipped


def crop(
    image: np.ndarray, actions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A square of 0.9 of the area anywhere, scaled back: uint8 [H, W, 3] (tf's crop_and_resize)."""
    side = np.sqrt(CROP)
    rows, columns = (_positions(n, side, rng.uniform(0, 1 - side)) for n in image.shape[:2])
    wide = _sampled(image.astype(np.float32), *rows)
    tall = _sampled(np.ascontiguousarray(wide.swapaxes(0, 1)), *columns)
    return _as_uint8(tall.swapaxes(0, 1)), actions


def _positions(size: int, share: float, start: float) -> tuple[np.ndarray, np.ndarray]:
    """Source rows int [size] below each sampled place, and how far it is beyond them, [0, 1)."""
    places = (size - 1) * (start + share * np.linspace(0, 1, size))
    below = np.minimum(places.astype(np.int64), max(0, size - 2))
    return below, (places - below).astype(np.float32)


def _sampled(rows: np.ndarray, below: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """Linear interpolation along the first axis of float32 [n, m, 3]."""
    low, high = rows[below], rows[np.minimum(below + 1, len(rows) - 1)]
    high -= low
    high *= beyond[:, None, None]
    high += low
    return high


def colour(
    image: np.ndarray, actions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness ±0.2, contrast and saturation 0.8–1.2, hue ±0.05 of the circle, in that order."""
    added = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    factor, vivid = rng.uniform(*CONTRAST), rng.uniform(*SATURATION)
    turn = rng.uniform(-HUE, HUE)
    planes = image.transpose(2, 0, 1).astype(np.float32, order="C")
    planes /= 255
    planes = np.clip(planes + np.float32(added), 0, 1)
    mean = planes.mean(axis=(1, 2), keepdims=True)
    planes = np.clip((planes - mean) * np.float32(factor) + mean, 0, 1)
    return _as_uint8(255 * recoloured(planes, vivid, turn)).transpose(1, 2, 0), actions


def recoloured(planes: np.ndarray, vivid: float, turn: float) -> np.ndarray:
    """Scale the HSV saturation of float32 [3, H, W] in 0..1 and turn its hue (1.0 is a circle)."""
    red, green, blue = planes
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    safe = np.where(spread > 0, spread, np.float32(1))
    hue = np.where(
        value == red,
        (green - blue) / safe,
        np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue += np.float32(6 * turn)
    spread = np.minimum(spread * np.float32(vivid), value)
    return np.stack([value - spread * _share(hue + np.float32(n)) for n in (5, 3, 1)])


def _share(angle: np.ndarray) -> np.ndarray:
    """How much of the spread a channel lacks at a hue in sixths of the circle."""
    angle -= 6 * np.floor(angle / 6)
    return np.clip(np.minimum(angle, 4 - angle), 0, 1)


def _as_uint8(x: np.ndarray) -> np.ndarray:
    """float32 within 0..255, but for rounding, to the nearest."""
    return (x + np.float32(0.5)).astype(np.uint8)


AUGMENTATIONS: dict[str, tuple[Augment, ...]] = {
    "none": (),
    "shift": (shift,),
    "mirror": (mirror,),
    "mirror+shift": (mirror, shift),
    "crop+colour": (crop, colour),
}


def apply(
    name: str, image: np.ndarray, actions: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """image uint8 [H, W, 3], raw actions float32 [k, 7]."""
    for step in AUGMENTATIONS[name]:
        image, actions = step(image, actions, rng)
    return image, actions
