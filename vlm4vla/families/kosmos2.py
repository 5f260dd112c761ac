"""Kosmos-2: a CLIP tower, latent queries that read it, and a causal decoder (paper A.2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

from vlm4vla.families.base import (
    Family,
    Inputs,
    Template,
    Tower,
    fan_in_,
    normal_,
    patches_,
    tiny_linear_init,
    tower_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe


class Kosmos2(Family):
    image_token = "<image>"
    pad_token = "<pad>"

    def model_class(self, row: Backbone) -> Any:
        return Kosmos2ForConditionalGeneration

    def build(self, row: Backbone) -> PreTrainedModel:
        return Kosmos2ForConditionalGeneration(Kosmos2Config(**row.config))

    def input_px(self, row: Backbone, image_px: int, recipe: Recipe) -> int:
        return int(row.config["vision_config"]["image_size"])

    def image_tokens(self, row: Backbone, input_px: int) -> int:
        return int(row.config["latent_query_num"])

    def towers(self, row: Backbone, input_px: int) -> tuple[Tower, ...]:
        return (tower_of(row, "model.encoder.layers", input_px, special=1),)

    def planes(self, row: Backbone, images: UInt8[Tensor, "B S S 3"]) -> UInt8[Tensor, "B 1 3 P"]:
        return images.permute(0, 3, 1, 2).flatten(2)[:, None]

    def pixels(self, row: Backbone, planes: Float[Tensor, "B 1 3 P"], side: int) -> Tensor:
        return planes.view(-1, 3, side, side)

    def template(self, style: str, recipe: Recipe) -> Template:
        if recipe.kosmos_image_first:
            # The released text still spells a placeholder that no image replaces.
            return Template("", "<s><image><image_pad></image><p>{text}\n</p>", "</s>")
        return Template("<s><image>", "</image><p>{text}\n</p>", "</s>")

    def question_template(self, recipe: Recipe) -> Template:
        return Template("<s><image>", "</image>Question: {text} Answer:", "</s>")

    def hidden(self, vlm: Any, inputs: Inputs, recipe: Recipe) -> Float[Tensor, "B T D"]:
        ids = inputs["input_ids"]
        images = self._image_features(vlm, inputs["pixel_values"].to(vlm.dtype))
        # Explicit positions: the model's own count skips whatever equals the padding id.
        first = vlm.config.text_config.pad_token_id + 1
        positions = torch.arange(first, first + ids.shape[1], device=ids.device)
        output = vlm.text_model.model(
            input_ids=ids,
            image_embeds=images,
            image_embeds_position_mask=inputs["image_mask"],
            attention_mask=inputs["attention_mask"] if recipe.query_after_padding else None,
            position_ids=positions.expand(ids.shape).contiguous(),
            use_cache=False,
        )
        return output.last_hidden_state

    def last_feed_forward(self, vlm: Any) -> nn.Module:
        layer: nn.Module = vlm.text_model.model.layers[-1].ffn
        return layer

    def logits(self, vlm: Any, hidden: Float[Tensor, "*b D"]) -> Float[Tensor, "*b V"]:
        return vlm.text_model.lm_head(hidden)

    def tiny_init(self, vlm: nn.Module) -> None:
        tiny_linear_init(vlm.get_submodule("text_model"))
        for name, parameter in vlm.named_parameters():
            if name.endswith("patch_embedding.weight"):
                patches_(parameter)
            elif name.endswith("position_embedding.weight"):
                # Latents find places by these alone; fainter ones drown in the patches' colours.
                normal_(parameter, 1.0)
            elif name.endswith("latent_query"):
                normal_(parameter, 1.0)
            elif name.endswith("embed_tokens.weight"):
                normal_(parameter, 0.5)
            elif name == "image_to_text_projection.dense.weight":
                # Its input has unit length, 1/8 of a unit-variance one.
                normal_(parameter, 2.0)
            elif name.startswith("image_to_text_projection.x_attn") and parameter.ndim == 2:
                fan_in_(parameter)

    def _image_features(self, vlm: Any, pixels: Tensor) -> Float[Tensor, "B L D"]:
        features = vlm.vision_model(pixel_values=pixels).last_hidden_state
        features = vlm.vision_model.model.post_layernorm(features)
        latents, _ = vlm.image_to_text_projection(functional.normalize(features, dim=-1))
        return latents
