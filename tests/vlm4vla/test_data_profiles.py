"""What each profile does to actions and images, and the colour operations beside Pillow's."""

import colorsys

import numpy as np
import pytest

from envs.api import TrainingRecipe
from envs.benchmarks import benchmark
from tests.vlm4vla import published
from vlm4vla.data import augment, profiles
from vlm4vla.data.normalise import Normaliser, Statistics
from vlm4vla.data.order import generator_at

EXPECTED = {
    ("calvin", "paper"): ("clip65", "shift"),
    ("calvin", "official"): ("clip65", "shift"),
    ("libero_10", "paper"): ("quantile", "none"),
    ("libero_10", "official"): ("quantile+clip65", "crop+colour"),
    ("tabletop", "paper"): ("identity", "mirror"),
    ("tabletop", "official"): ("identity", "mirror"),
}


@pytest.mark.parametrize(("name", "profile"), EXPECTED)
def test_each_benchmark_under_each_profile(name, profile):
    recipe = benchmark(name).recipe
    found = profiles.normalisation(recipe, profile), profiles.augmentation(recipe, profile)
    assert found == EXPECTED[name, profile]


def test_official_quantiles_are_clipped_a_second_time():
    actions = np.random.default_rng(0).uniform(-2, 2, (400, 7)).astype(np.float32)
    row = TrainingRecipe(1, 1, 1.0, (1,), normalisation="quantile")
    paper, official = (
        Normaliser(profiles.normalisation(row, profile), Statistics.of(actions)).forward(actions)
        for profile in ("paper", "official")
    )
    assert np.allclose(official[:, :6], np.clip(paper[:, :6], -0.65, 0.65) / 0.65, atol=1e-6)
    assert np.array_equal(official[:, 6], actions[:, 6])


@pytest.mark.parametrize("name", ["crop", "colour"])
def test_augmentation_is_repeatable_and_leaves_actions(name):
    image, moves = published.smooth(1, 40)[0], published.actions(4)
    draws = [getattr(augment, name)(image, moves, generator_at(1, 2, slot)) for slot in (3, 3, 4)]
    assert np.array_equal(draws[0][0], draws[1][0])
    assert not np.array_equal(draws[0][0], draws[2][0])
    assert draws[0][1] is moves
    assert draws[0][0].dtype == np.uint8 and draws[0][0].shape == image.shape


def test_saturation_and_hue_are_the_standard_librarys():
    pixels = np.random.default_rng(1).uniform(0, 1, (6, 5, 3)).astype(np.float32)
    pixels[0] = 0.5  # grey has no hue
    pixels[1, :, 0] = 1
    out = augment.recoloured(pixels.transpose(2, 0, 1), 1.2, -0.04).transpose(1, 2, 0)
    for place in np.ndindex(6, 5):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, pixels[place]))
        wanted = colorsys.hsv_to_rgb((hue - 0.04) % 1, min(1, 1.2 * saturation), value)
        assert np.allclose(out[place], wanted, atol=1e-5)


def test_a_crop_shows_nine_tenths_of_the_area():
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[:, None, None], 200, 1).repeat(3, 2)
    for slot in range(20):
        out, _ = augment.crop(ramp, np.zeros((1, 7)), generator_at(0, 0, slot))
        seen = out[:, 0, 0].astype(int)
        assert abs((seen[-1] - seen[0]) / 199 - np.sqrt(0.9)) < 0.01
        assert (np.diff(seen) >= 0).all()


def test_colour_stays_within_its_limits():
    grey = np.full((20, 20, 3), 128, np.uint8)
    means = [augment.colour(grey, grey, generator_at(0, 0, s))[0].mean() / 255 for s in range(100)]
    assert 0.30 < min(means) < 0.35 and 0.65 < max(means) < 0.71
