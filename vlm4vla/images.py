"""Camera frames to a model's pixels, a batch at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from vlm4vla.backbones import ImageSpec


def check_images(images: np.ndarray) -> None:
    """ValueError unless `images` is uint8 [B, H, W, 3]."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        raise ValueError(f"images must be a uint8 array of values 0..255, got {kind}.")
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(
            f"images must have the shape [batch, height, width, 3] (RGB last), "
            f"got {list(images.shape)}."
        )


def resize(
    images: UInt8[np.ndarray, "B H W 3"], side: int, resample: str
) -> UInt8[np.ndarray, "B side side 3"]:
    """Squash images to squares of `side` pixels; those of that size come back untouched.

    resample: "bicubic" (antialiased, as the hub's image processors) or "area".
    """
    check_images(images)
    if images.shape[1:3] == (side, side):
        return images
    if resample == "area" and images.shape[1:3] == (2 * side, 2 * side):
        return _halved(images)
    bchw = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    if resample == "area":
        out = functional.interpolate(bchw.float(), (side, side), mode="area").round_()
    else:
        # The uint8 kernel rounds as PIL's does; through float the two drift apart.
        out = functional.interpolate(bchw, (side, side), mode="bicubic", antialias=True)
    return out.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _halved(images: UInt8[np.ndarray, "B H W 3"]) -> UInt8[np.ndarray, "B H/2 W/2 3"]:
    """Means of 2 x 2 pixels: the same bytes as `area` interpolation gives, in a third the time."""
    batch, height, width, colours = images.shape
    pairs = (batch, height // 2, 2, width // 2, 2, colours)
    x = torch.from_numpy(np.ascontiguousarray(images)).float().view(pairs)
    total = x[:, :, 0, :, 0] + x[:, :, 0, :, 1] + x[:, :, 1, :, 0] + x[:, :, 1, :, 1]
    return total.mul_(0.25).round_().to(torch.uint8).numpy()


def normalise(planes: UInt8[Tensor, "N 3 P"], spec: ImageSpec) -> Float[Tensor, "N 3 P"]:
    """(x / 255 - mean) / std per channel, which is the middle axis."""
    x = planes.float()
    mean, std = 255 * torch.tensor(spec.mean), 255 * torch.tensor(spec.std)
    if len(set(spec.mean)) == len(set(spec.std)) == 1:
        # Numbers go through memory faster than broadcast rows, and most rows have one.
        return x.sub_(float(mean[0])).div_(float(std[0]))
    return x.sub_(mean[:, None]).div_(std[:, None])
