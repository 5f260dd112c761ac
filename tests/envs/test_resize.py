"""The child's resize against Pillow's, which datasets use."""

import numpy as np
import pytest
from PIL import Image

from envs.resize import resize


@pytest.mark.parametrize("shape", [(200, 200), (84, 84), (480, 640), (256, 256), (224, 224)])
def test_equals_pillow_bit_for_bit(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image[: shape[0] // 2] = np.where(image[: shape[0] // 2] > 128, 255, 0)  # overshoots clip
    want = Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize(image, 224), np.asarray(want))


def test_refuses_what_is_not_a_frame():
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
        resize(np.zeros((4, 4, 3), np.float32), 224)
