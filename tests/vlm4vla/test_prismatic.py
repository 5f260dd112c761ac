"""OpenVLA's backbone: every released tensor has its place, and the towers see the image."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from tests.vlm4vla.policy_helpers import TEXTS, fresh, images
from vlm4vla import sizes
from vlm4vla.backbones import backbone
from vlm4vla.families import family_of, fused_vision
from vlm4vla.families.prismatic import UNREAD
from vlm4vla.weights import check_keys

NAME = "prism-dinosiglip-224px-7b"
Names = Iterator[tuple[str, tuple[int, ...]]]


def linear(name: str, out: int, into: int) -> Names:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def norm(name: str, width: int) -> Names:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def tower(name: str, width: int, inner: int, depth: int, scaled: bool) -> Names:
    """A timm vision transformer of patches of 14 on 224 px, as released."""
    yield f"{name}.pos_embed", (1, 256, width)
    yield f"{name}.patch_embed.proj.weight", (width, 3, 14, 14)
    yield f"{name}.patch_embed.proj.bias", (width,)
    for i in range(depth):
        block = f"{name}.blocks.{i}"
        yield from norm(f"{block}.norm1", width)
        yield from linear(f"{block}.attn.qkv", 3 * width, width)
        yield from linear(f"{block}.attn.proj", width, width)
        yield from norm(f"{block}.norm2", width)
        yield from linear(f"{block}.mlp.fc1", inner, width)
        yield from linear(f"{block}.mlp.fc2", width, inner)
        if scaled:
            yield f"{block}.ls1.scale_factor", (width,)
            yield f"{block}.ls2.scale_factor", (width,)
    yield from norm(f"{name}.norm", width)


def released() -> Names:
    """Names and shapes of openvla-7b's tensors, from its released modelling code."""
    dino, siglip = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"
    yield f"{dino}.cls_token", (1, 1, 1024)
    yield f"{dino}.reg_token", (1, 4, 1024)
    yield from tower(dino, 1024, 4096, 24, scaled=True)
    yield from tower(siglip, 1152, 4304, 27, scaled=False)
    yield f"{siglip}.attn_pool.latent", (1, 1, 1152)
    yield from linear(f"{siglip}.attn_pool.q", 1152, 1152)
    yield from linear(f"{siglip}.attn_pool.kv", 2 * 1152, 1152)
    yield from linear(f"{siglip}.attn_pool.proj", 1152, 1152)
    yield from norm(f"{siglip}.attn_pool.norm", 1152)
    yield from linear(f"{siglip}.attn_pool.mlp.fc1", 4304, 1152)
    yield from linear(f"{siglip}.attn_pool.mlp.fc2", 1152, 4304)
    for i, (out, into) in enumerate([(8704, 2176), (4096, 8704), (4096, 4096)], start=1):
        yield from linear(f"projector.fc{i}", out, into)
    yield "language_model.lm_head.weight", (32_064, 4096)
    yield "language_model.model.embed_tokens.weight", (32_064, 4096)
    for i in range(32):
        layer = f"language_model.model.layers.{i}"
        for part in "qkvo":
            yield f"{layer}.self_attn.{part}_proj.weight", (4096, 4096)
        for part, shape in (("gate", (11_008, 4096)), ("up", (11_008, 4096))):
            yield f"{layer}.mlp.{part}_proj.weight", shape
        yield f"{layer}.mlp.down_proj.weight", (4096, 11_008)
        yield f"{layer}.input_layernorm.weight", (4096,)
        yield f"{layer}.post_attention_layernorm.weight", (4096,)
    yield "language_model.model.norm.weight", (4096,)


def is_unread(name: str) -> bool:
    return any(re.search(pattern, name) for pattern in UNREAD)


def test_every_released_tensor_is_read_or_known_to_be_without_effect() -> None:
    found = dict(released())
    assert sum(math.prod(shape) for shape in found.values()) == 7_541_237_184
    used = {n: torch.empty(s, device="meta") for n, s in found.items() if not is_unread(n)}
    vlm = sizes.meta_model(backbone(NAME))
    check_keys(vlm.state_dict(keep_vars=True), used, "openvla-7b")
    assert sizes.count(vlm.parameters()) == 7_498_156_704
    left = {n: math.prod(s) for n, s in found.items() if is_unread(n)}
    assert sum(left.values()) == 7_541_237_184 - 7_498_156_704
    parts = {re.sub(r"\.(blocks\.\d+|norm|attn_pool)\..*", r".\1", name) for name in left}
    tower = "vision_backbone"
    assert parts == {
        f"{tower}.featurizer.blocks.23",
        f"{tower}.featurizer.norm",
        f"{tower}.fused_featurizer.blocks.26",
        f"{tower}.fused_featurizer.norm",
        f"{tower}.fused_featurizer.attn_pool",
    }


def test_a_missing_tensor_would_be_reported() -> None:
    used = {n: torch.empty(s, device="meta") for n, s in released() if not is_unread(n)}
    del used["projector.fc3.bias"]
    vlm = sizes.meta_model(backbone(NAME))
    with pytest.raises(ValueError, match=r"1 missing \(projector.fc3.bias\)"):
        check_keys(vlm.state_dict(keep_vars=True), used, "openvla-7b")


def test_pixels_come_in_both_normalisations() -> None:
    """128 is nearly the middle of SigLIP's range; ImageNet's means lie a little below it."""
    row = backbone(NAME)
    planes = torch.full((1, 1, 3, 224 * 224), (128 / 255 - 0.5) / 0.5)
    pixels = family_of(row).pixels(row, planes, 224)
    assert pixels.shape == (1, 6, 224, 224)
    dino = [(128 / 255 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    torch.testing.assert_close(pixels[0, :3, 0, 0], torch.tensor(dino), atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels[:, 3:].flatten(), planes.flatten())
    tiny = fresh(f"tiny-{NAME}").prepare(images(1), TEXTS[:1])["pixel_values"]
    assert tiny.shape == (1, 6, 112, 112)
    assert torch.equal(tiny[:, :3], tiny[:, 3:])


def test_the_full_row_sees_256_patches_of_2176_features() -> None:
    row = backbone(NAME)
    towers = sizes.meta_model(row).vision_backbone
    features = towers(torch.empty(2, 6, 224, 224, device="meta"))
    assert features.shape == (2, 256, 2176)
    assert sizes.image_tokens(row, 224) == 256


def test_attention_is_softmax_of_scaled_products() -> None:
    torch.manual_seed(0)
    attention = fused_vision.Attention(8, 2)
    x = torch.randn(1, 5, 8)
    q, k, v = attention.qkv(x)[0].split(8, dim=-1)
    heads = [
        functional.softmax(q[:, h] @ k[:, h].T / 2, dim=-1) @ v[:, h]
        for h in (slice(0, 4), slice(4, 8))
    ]
    expected = attention.proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x)[0], expected)


def test_both_towers_matter() -> None:
    towers = fresh(f"tiny-{NAME}").vlm.vision_backbone
    pixels = torch.randn(1, 6, 112, 112)
    before = towers(pixels)
    for channels, columns in ((slice(0, 3), slice(0, 32)), (slice(3, 6), slice(32, 64))):
        other = pixels.clone()
        other[:, channels] += 1
        moved = (towers(other) - before).abs().amax((0, 1)) > 0
        assert moved[columns].all()
        assert moved.sum() == 32
