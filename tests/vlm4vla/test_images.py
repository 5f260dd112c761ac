"""Frames to pixels: the quick way to half the size gives the slow way's bytes."""

import numpy as np
import torch
from torch.nn import functional

from vlm4vla.images import resize


def test_half_the_size_is_the_area_mean():
    frames = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    mean = functional.interpolate(planes, (112, 112), mode="area").round()
    np.testing.assert_array_equal(resize(frames, 112, "area"), mean.permute(0, 2, 3, 1).numpy())
