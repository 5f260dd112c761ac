"""Our shortcuts against transformers' own paths: positions, masks, packed attention, pixels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.vlm4vla.policy_helpers import TEXTS, fresh, images, shared
from vlm4vla import sizes
from vlm4vla.backbones import backbone
from vlm4vla.families import family_of
from vlm4vla.families.packed_attention import NAME
from vlm4vla.families.qwen_vl import rope_positions
from vlm4vla.images import normalise, resize
from vlm4vla.policies import ActionQueryPolicy
from vlm4vla.recipe import PAPER
from vlm4vla.tiny import merged
from vlm4vla.tokenizers import qwen_tokenizer
from vlm4vla.weights import from_scratch

QWEN = ("tiny-qwen2.5vl-3b", "tiny-qwen3vl-2b", "tiny-qwen3vl-30b-a3b")


def batch(policy: ActionQueryPolicy) -> dict[str, torch.Tensor]:
    return policy.prepare(images(3), TEXTS)


def native_qwen(policy: ActionQueryPolicy, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Transformers' own way: attention mask, token types and one image after the other."""
    vlm = policy.vlm
    vlm.model.visual.config._attn_implementation = "sdpa"
    side = int(inputs["pixel_values"].shape[1] ** 0.5)
    output = vlm.model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        pixel_values=inputs["pixel_values"].flatten(0, 1),
        image_grid_thw=torch.tensor([[1, side, side]] * len(inputs["input_ids"])),
        mm_token_type_ids=inputs["image_mask"].int(),
    )
    vlm.model.visual.config._attn_implementation = NAME
    return output.last_hidden_state


@pytest.mark.parametrize("name", QWEN)
def test_qwen_hidden_states_are_transformers_own(name: str) -> None:
    policy = shared(name)
    inputs = batch(policy)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        ours = policy.family.hidden(policy.vlm, inputs, PAPER)
        native = native_qwen(policy, inputs)
    assert policy.vlm.model.visual.config._attn_implementation == NAME
    torch.testing.assert_close(ours[real], native[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", QWEN)
def test_positions_are_mrope(name: str) -> None:
    policy = shared(name)
    inputs = batch(policy)
    native, _ = policy.vlm.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["image_mask"].int(),
        image_grid_thw=torch.tensor([[1, 8, 8]] * 3),
        attention_mask=inputs["attention_mask"],
    )
    before = int(inputs["image_mask"][0].int().argmax())
    length = inputs["input_ids"].shape[1]
    ours = rope_positions(length, before, 4, torch.device("cpu")).expand(3, 3, length)
    real = inputs["attention_mask"].bool()
    assert torch.equal(ours[:, real], native[:, real])


def test_unequal_windows_fall_back_to_segments() -> None:
    policy = shared("tiny-qwen2.5vl-3b")
    large = images(2, 140)
    inputs = fresh("tiny-qwen2.5vl-3b", image_px=280).prepare(large, TEXTS[:2])
    with torch.no_grad():
        ours = policy.family.hidden(policy.vlm, inputs, PAPER)
        native = native_qwen(policy, inputs)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[real], native[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["tiny-paligemma-1", "tiny-paligemma-2"])
def test_paligemma_mask_is_a_bidirectional_image_and_causal_text(name: str) -> None:
    policy = shared(name)
    inputs = batch(policy)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        ours = policy.family.hidden(policy.vlm, inputs, PAPER)
        native = policy.vlm.model(
            input_ids=inputs["input_ids"],
            pixel_values=inputs["pixel_values"],
            attention_mask=inputs["attention_mask"],
            token_type_ids=(~inputs["image_mask"]).long(),
        ).last_hidden_state
    torch.testing.assert_close(ours[real], native[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_paligemmas_other_masks_differ(mask: str) -> None:
    policy = shared("tiny-paligemma-1")
    inputs = batch(policy)
    with torch.no_grad():
        paper = policy.family.hidden(policy.vlm, inputs, PAPER)
        other = policy.family.hidden(
            policy.vlm, inputs, dataclasses.replace(PAPER, image_attention=mask)
        )
    assert (paper - other)[inputs["attention_mask"].bool()].abs().max() > 1e-4


def test_kosmos_hidden_states_are_transformers_own() -> None:
    policy = shared("tiny-kosmos-2")
    inputs = policy.prepare_text(images(3), TEXTS)
    with torch.no_grad():
        ours = policy.lm_logits(inputs)
        native = policy.vlm(
            pixel_values=inputs["pixel_values"],
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            image_embeds_position_mask=inputs["image_mask"],
        ).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[real], native[real], atol=1e-4, rtol=1e-4)


def test_query_is_scaled_like_a_word() -> None:
    assert shared("tiny-paligemma-1").family.query_scale(shared("tiny-paligemma-1").vlm) == 8.0
    assert shared("tiny-qwen3vl-2b").family.query_scale(shared("tiny-qwen3vl-2b").vlm) == 1.0


PROCESSORS = {
    "paligemma-1": lambda: transformers.SiglipImageProcessorPil(
        size={"height": 224, "width": 224}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3
    ),
    "kosmos-2": lambda: transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}, resample=3
    ),
    "qwen2.5vl-3b": lambda: transformers.Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, size={"shortest_edge": 56 * 56, "longest_edge": 1_003_520}
    ),
    "qwen3vl-2b": lambda: transformers.Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 32 * 32, "longest_edge": 1_003_520},
    ),
}


@pytest.mark.parametrize("image_px", [224, 512])
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_hub_processors(name: str, image_px: int) -> None:
    row = backbone(name)
    family = family_of(row)
    frame = smooth(image_px)
    side = family.input_px(row, image_px, PAPER)
    small = torch.from_numpy(resize(frame[None], side, row.image.resample))
    planes = family.planes(row, small)
    ours = family.pixels(row, normalise(planes.flatten(0, 1), row.image).view(planes.shape), side)
    native = PROCESSORS[name]()(images=[Image.fromarray(frame)], return_tensors="pt")
    expected = native["pixel_values"].reshape(ours.shape)
    # One grey level of 255, for the resizers' different roundings.
    assert (ours - expected).abs().max() <= 1.01 / 255 / min(row.image.std)
    assert (ours - expected).abs().mean() < 2e-3


def smooth(side: int) -> np.ndarray:
    """A photograph's kind of image: gradients and edges, uint8 [side, side, 3]."""
    y, x = np.mgrid[:side, :side] / side
    waves = np.stack([np.sin(9 * x), np.cos(7 * y), np.sin(5 * (x + y))], -1)
    frame = (waves * 100 + 128).astype(np.uint8)
    frame[side // 3 : side // 2, side // 4 : side // 2] = (220, 30, 30)
    return frame


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("qwen2.5vl-3b", {224: 64, 512: 324, 768: 729}),
        ("qwen3vl-8b", {224: 49, 512: 256, 768: 576}),
        ("paligemma-2", {224: 256, 512: 256, 768: 256}),
        ("kosmos-2", {224: 64, 512: 64, 768: 64}),
        ("tiny-qwen3vl-2b", {224: 16}),
        ("tiny-paligemma-1", {224: 16}),
    ],
)
def test_image_tokens_per_resolution(name: str, tokens: dict[int, int]) -> None:
    row = backbone(name)
    family = family_of(row)
    found = {px: family.image_tokens(row, family.input_px(row, px, PAPER)) for px in tokens}
    assert found == tokens


@pytest.mark.parametrize("name", ["qwen2.5vl-3b", "qwen3vl-2b"])
def test_the_full_path_runs_at_small_width(name: str) -> None:
    """Real vocabulary, patches, frames and resolutions; only widths and depths are cut."""
    small = {
        "text_config": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1},
        "vision_config": {"hidden_size": 64, "intermediate_size": 64, "depth": 2},
    }
    small["text_config"] |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64}
    rope = {"rope_type": "default", "mrope_section": [16, 8, 8], "rope_theta": 1e6}
    small["text_config"]["rope_parameters"] = rope
    small["vision_config"] |= {"num_heads": 2, "out_hidden_size": 64}
    if name.startswith("qwen3"):
        small["vision_config"]["deepstack_visual_indexes"] = [0]
    row = backbone(name)
    row = dataclasses.replace(row, config=merged(row.config, small))
    for image_px, tokens in (
        (224, sizes.image_tokens(row, 224)),
        (512, sizes.image_tokens(row, 512)),
    ):
        policy = ActionQueryPolicy(
            row, from_scratch(row), qwen_tokenizer(), PAPER, chunk=10, image_px=image_px
        )
        inputs = policy.prepare(images(2, 256), TEXTS[:2])
        assert inputs["image_mask"].sum(1).tolist() == [tokens] * 2
        pose, gripper = policy(inputs)
        assert (pose.shape, gripper.shape) == ((2, 10, 6), (2, 10))
        assert torch.isfinite(pose).all()
