"""Qwen2.5-VL, Qwen3-VL and its mixture of experts (paper A.2.3, A.2.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from vlm4vla.families.base import (
    Family,
    Inputs,
    Template,
    Tower,
    normal_,
    patches_,
    tiny_linear_init,
    tower_of,
)
from vlm4vla.families.packed_attention import use_packed_attention, vision_plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe

CLASSES: Mapping[str, tuple[Any, Any]] = {
    "qwen2.5-vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3-vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
    "qwen3-vl-moe": (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration),
}
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_USER = "<|im_start|>user\n<|vision_start|>"
_ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
_QUESTION = "What action should the robotic arm take to {text}"


class QwenVL(Family):
    image_token = "<|image_pad|>"
    pad_token = "<|endoftext|>"

    def model_class(self, row: Backbone) -> Any:
        return CLASSES[row.architecture][1]

    def build(self, row: Backbone) -> PreTrainedModel:
        config_class, model_class = CLASSES[row.architecture]
        return model_class(config_class(**row.config))

    def input_px(self, row: Backbone, image_px: int, recipe: Recipe) -> int:
        """The nearest multiple of a merged patch, as the hub's processor rounds."""
        scale = row.image.scale
        side = float(image_px)
        if recipe.qwen_min_pixels is not None:
            side = max(side, math.sqrt(recipe.qwen_min_pixels))
        unit = self._unit(row)
        return max(unit, round(side * scale / unit) * unit)

    def image_tokens(self, row: Backbone, input_px: int) -> int:
        return (input_px // self._unit(row)) ** 2

    def towers(self, row: Backbone, input_px: int) -> tuple[Tower, ...]:
        return (tower_of(row, "blocks", input_px),)

    def planes(self, row: Backbone, images: UInt8[Tensor, "B S S 3"]) -> UInt8[Tensor, "B N 3 P"]:
        """Patches in merge order, each one colour plane after the other."""
        vision = row.config["vision_config"]
        patch, merge, frames = (
            vision[key] for key in ("patch_size", "spatial_merge_size", "temporal_patch_size")
        )
        batch, side = images.shape[:2]
        blocks = side // (patch * merge)
        x = images.view(batch, blocks, merge, patch, blocks, merge, patch, 3)
        # block row, block column, row in block, column in block, colour, patch row, column
        x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)
        if frames > 1:
            x = x.unsqueeze(6).expand(*x.shape[:6], frames, *x.shape[6:])
        return x.reshape(batch, (side // patch) ** 2, 3, frames * patch * patch)

    def pixels(self, row: Backbone, planes: Float[Tensor, "B N 3 P"], side: int) -> Tensor:
        """Flat patches [B, N, 3 * frames * patch * patch]."""
        return planes.flatten(2)

    def template(self, style: str, recipe: Recipe) -> Template:
        if style == "short":
            return Template("<|im_start|><|vision_start|>", "<|vision_end|>{text}\n", "<|im_end|>")
        after = f"<|vision_end|>{_QUESTION}{_ASSISTANT}"
        return Template(_SYSTEM + _USER, after, "<|im_end|>")

    def question_template(self, recipe: Recipe) -> Template:
        return Template(_SYSTEM + _USER, f"<|vision_end|>{{text}}{_ASSISTANT}", "<|im_end|>")

    def hidden(self, vlm: Any, inputs: Inputs, recipe: Recipe) -> Float[Tensor, "B T D"]:
        images = self._image_features(vlm, inputs["pixel_values"])
        output = vlm.model(
            input_ids=inputs["input_ids"],
            mm_encoder_outputs={"image": images},
            position_ids=self._positions(vlm, inputs),
            # Right padding is invisible to a causal model; only `official` hides it by mask.
            attention_mask=inputs["attention_mask"] if recipe.query_after_padding else None,
            use_cache=False,
        )
        return output.last_hidden_state

    def last_feed_forward(self, vlm: Any) -> nn.Module:
        layer: nn.Module = vlm.model.language_model.layers[-1].mlp
        return layer

    def logits(self, vlm: Any, hidden: Float[Tensor, "*b D"]) -> Float[Tensor, "*b V"]:
        return vlm.lm_head(hidden)

    def speed_up(self, vlm: Any) -> None:
        use_packed_attention(vlm)
        vlm.model.visual.patch_embed.proj.__class__ = PatchProjection

    def tiny_init(self, vlm: nn.Module) -> None:
        tiny_linear_init(vlm)
        for name, parameter in vlm.named_parameters():
            if name.endswith("patch_embed.proj.weight"):
                patches_(parameter)
            elif name.endswith("pos_embed.weight"):
                normal_(parameter, 0.25)
            elif name.endswith("embed_tokens.weight"):
                normal_(parameter, 0.5)
            elif ".experts." in name and parameter.ndim == 3:
                normal_(parameter, parameter.shape[-1] ** -0.5)

    def _unit(self, row: Backbone) -> int:
        vision = row.config["vision_config"]
        return int(vision["patch_size"] * vision.get("spatial_merge_size", 2))

    def _image_features(self, vlm: Any, flat: Float[Tensor, "B N P"]) -> Any:
        batch, patches, _ = flat.shape
        plan = vision_plan(vlm.config.vision_config, batch, patches, flat.device)
        return vlm.model.get_image_features(
            flat.flatten(0, 1).to(vlm.dtype), plan.grid, return_dict=True, **plan.precomputed
        )

    def _positions(self, vlm: Any, inputs: Inputs) -> Int[Tensor, "3 B T"]:
        ids = inputs["input_ids"]
        merge = vlm.config.vision_config.spatial_merge_size
        blocks = math.isqrt(inputs["pixel_values"].shape[1]) // merge
        before = int(inputs["image_start"][0])
        positions = rope_positions(ids.shape[1], before, blocks, ids.device)
        return positions.expand(3, *ids.shape)


class PatchProjection(nn.Conv3d):
    """Qwen's patch convolution, whose window is its whole input, as the product it is.

    Put in place by a change of class, so weights, names and hooks stay where they are.
    """

    def forward(self, patches: Tensor) -> Tensor:
        return functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


@lru_cache(maxsize=64)
def rope_positions(
    length: int, before: int, blocks: int, device: torch.device
) -> Int[Tensor, "3 1 T"]:
    """M-RoPE positions (time, row, column) of a prompt with one square image.

    Text counts up; the image's tokens all start where text stopped, spread over rows and
    columns; the text after it goes on from the largest of those. Padding at the right does
    not come into it, so the positions hold for every sample of the batch.
    """
    grid = torch.arange(blocks)
    rows, columns = torch.meshgrid(grid, grid, indexing="ij")
    image = torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1) + before
    after = torch.arange(length - before - blocks**2) + before + blocks
    text = torch.arange(before)
    positions = torch.cat([text.expand(3, -1), image, after.expand(3, -1)], dim=1)
    return positions[:, None].to(device)
