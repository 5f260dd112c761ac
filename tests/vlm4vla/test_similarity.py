"""Linear CKA against what is known of it, and the features of every family."""

import numpy as np
import pytest
import torch

from tests.vlm4vla.policy_helpers import ARCHITECTURES, TEXTS, fresh, images, shared
from vlm4vla.similarity import blocks, features, linear_cka

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def test_rotation_scale_and_shift_change_nothing():
    a = normal(50, 8)
    turned = a @ torch.linalg.qr(normal(8, 8)).Q * 3 + 5
    assert linear_cka(a, turned) == pytest.approx(1, abs=1e-9)
    assert linear_cka(a, torch.cat([a, a], 1)) == pytest.approx(1, abs=1e-9)


def test_unrelated_features_are_at_0_even_when_wider_than_there_are_scenes():
    """Where the plain estimate is near 1."""
    found = [linear_cka(normal(40, 400), normal(40, 300)) for _ in range(30)]
    assert abs(np.mean(found)) < 0.02
    a, b = (x - x.mean(0) for x in (normal(40, 400), normal(40, 300)))
    plain = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert plain > 0.8


def test_of_many_scenes_it_is_the_plain_formula():
    """Kornblith et al. 2019, equation 5, which is biased by about D / N alone."""
    shared_part = normal(4000, 3)
    a = torch.cat([shared_part, normal(4000, 3)], 1)
    b = torch.cat([2 * shared_part, normal(4000, 2)], 1)
    centred = [x - x.mean(0) for x in (a, b)]
    cross, one, other = (x.T @ y for x, y in (centred, centred[:1] * 2, centred[1:] * 2))
    plain = float(cross.norm() ** 2 / (one.norm() * other.norm()))
    assert linear_cka(a, b) == pytest.approx(plain, abs=2e-3) and 0.6 < plain < 0.75


def test_too_few_scenes_are_refused():
    with pytest.raises(ValueError, match="4 or more scenes"):
        linear_cka(normal(3, 2), normal(3, 2))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_block_of_every_family_is_seen_scene_by_scene(name):
    policy = shared(name)
    scenes = list(images(5)), [TEXTS[n % 3] for n in range(5)]
    found = features(policy, scenes)
    config = policy.vlm.config
    sizes = {
        part: sum(layer[0] == part for layer in blocks(policy)) for part in ("vision", "language")
    }
    assert sizes["language"] == config.get_text_config().num_hidden_layers
    vision = config.vision_config
    assert sizes["vision"] == getattr(vision, "depth", None) or vision.num_hidden_layers
    alone = features(policy, (scenes[0][3:4], scenes[1][3:4]))
    for layer, seen in found.items():
        assert seen.shape[0] == 5 and seen.std(0).max() > 0
        torch.testing.assert_close(seen[3:4], alone[layer], rtol=1e-3, atol=1e-4)
    other = features(fresh(name, seed=1).eval(), scenes)
    assert any(not torch.allclose(found[layer], other[layer], atol=1e-2) for layer in found)
