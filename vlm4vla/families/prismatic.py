"""Prismatic: DINOv2 and SigLIP side by side, a projector of three layers and Llama-2 (OpenVLA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from vlm4vla.families.base import (
    ACTION_IDS,
    Family,
    Inputs,
    Template,
    Tower,
    normal_,
    patches_,
    tiny_linear_init,
)
from vlm4vla.families.fused_vision import FusedTowers

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""DINOv2's mean and spread per channel, on the 0..1 scale; the row's are SigLIP's."""
UNREAD = (
    r"featurizer\.norm\.",
    r"fused_featurizer\.attn_pool\.",
    r"vision_backbone\.featurizer\.blocks\.23\.",
    r"fused_featurizer\.blocks\.26\.",
)
"""Released tensors that come after the layer which is read, so that no action depends on them."""


class PrismaticConfig(PreTrainedConfig):
    """text_config: Llama's. towers: arguments of the two `Tower`s, DINOv2 first."""

    model_type = "openvla"
    sub_configs = {"text_config": LlamaConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config: Mapping[str, Any] | None = None,
        towers: Sequence[Mapping[str, Any]] = (),
        **more: Any,
    ) -> None:
        self.text_config = LlamaConfig(**(text_config or {}))
        self.towers = list(towers)
        super().__init__(**more)


class Projector(nn.Module):
    """From the towers' features to words, by way of four times the features' width."""

    def __init__(self, vision: int, words: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision, 4 * vision)
        self.fc2 = nn.Linear(4 * vision, words)
        self.fc3 = nn.Linear(words, words)

    def forward(self, features: Float[Tensor, "B N W"]) -> Float[Tensor, "B N D"]:
        return self.fc3(functional.gelu(self.fc2(functional.gelu(self.fc1(features)))))


class Prismatic(PreTrainedModel):
    """Modules carry the names of the released weights, so that those need no renaming."""

    config_class = PrismaticConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = list(UNREAD)  # noqa: RUF012

    def __init__(self, config: PrismaticConfig) -> None:
        super().__init__(config)
        self.vision_backbone = FusedTowers(config.towers)
        self.projector = Projector(self.vision_backbone.width, config.text_config.hidden_size)
        self.language_model = LlamaForCausalLM(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)


class PrismaticFamily(Family):
    # Llama has no token for an image, and which one fills its place does not matter.
    image_token = "</s>"
    pad_token = "</s>"

    def model_class(self, row: Backbone) -> Any:
        return Prismatic

    def build(self, row: Backbone) -> PreTrainedModel:
        return Prismatic(self._config(row))

    def load(self, row: Backbone, source: str, dtype: torch.dtype) -> PreTrainedModel:
        """The hub's own config names a class that is not in transformers: ours takes its place."""
        config = self._config(row)
        revision = row.revision or "main"
        return Prismatic.from_pretrained(source, config=config, revision=revision, dtype=dtype)

    def _config(self, row: Backbone) -> PrismaticConfig:
        return PrismaticConfig(text_config=row.config["text_config"], towers=row.config["towers"])

    def action_ids_end(self, row: Backbone, count: int = ACTION_IDS) -> int:
        # Released embeddings are padded to a multiple of 64 beyond Llama's own 32,000 words.
        return super().action_ids_end(row, count) - int(row.config["padding"])

    def input_px(self, row: Backbone, image_px: int, recipe: Recipe) -> int:
        return int(row.config["towers"][0]["image_size"])

    def image_tokens(self, row: Backbone, input_px: int) -> int:
        return int(input_px // row.config["towers"][0]["patch"]) ** 2

    def towers(self, row: Backbone, input_px: int) -> tuple[Tower, ...]:
        """DINOv2's class token and registers are positions too."""
        one, other = (
            ((input_px // tower["patch"]) ** 2 + bool(registers) + registers, tower["width"])
            for tower in row.config["towers"]
            for registers in [tower.get("registers", 0)]
        )
        return Tower("featurizer.blocks", *one), Tower("fused_featurizer.blocks", *other)

    def planes(self, row: Backbone, images: UInt8[Tensor, "B S S 3"]) -> UInt8[Tensor, "B 1 3 P"]:
        return images.permute(0, 3, 1, 2).flatten(2)[:, None]

    def pixels(self, row: Backbone, planes: Float[Tensor, "B 1 3 P"], side: int) -> Tensor:
        """[B, 6, S, S]: normalised for DINOv2, then for SigLIP; tiny towers are alike."""
        siglip = planes.view(-1, 3, side, side)
        if row.tiny:
            return torch.cat([siglip, siglip], dim=1)
        mean, std, dino_mean, dino_std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (row.image.mean, row.image.std, *IMAGENET)
        )
        return torch.cat([(siglip * std + mean - dino_mean) / dino_std, siglip], dim=1)

    def template(self, style: str, recipe: Recipe) -> Template:
        # The space after "Out:" is a token of its own (29871), which the actions follow.
        return Template("<s>", "In: What action should the robot take to {text}?\nOut: ", "</s>")

    def question_template(self, recipe: Recipe) -> Template:
        return Template("<s>", "In: {text}\nOut: ", "</s>")

    def hidden(self, vlm: Any, inputs: Inputs, recipe: Recipe) -> Float[Tensor, "B T D"]:
        words = self.embedding(vlm)(inputs["input_ids"])
        images = vlm.projector(vlm.vision_backbone(inputs["pixel_values"].to(vlm.dtype)))
        seen = words.masked_scatter(inputs["image_mask"][..., None], images.to(words.dtype))
        output = vlm.language_model.model(
            inputs_embeds=seen,
            # Right padding is invisible to a causal model; only `official` hides it by mask.
            attention_mask=inputs["attention_mask"] if recipe.query_after_padding else None,
            use_cache=False,
        )
        return output.last_hidden_state

    def last_feed_forward(self, vlm: Any) -> nn.Module:
        layer: nn.Module = vlm.language_model.model.layers[-1].mlp
        return layer

    def logits(self, vlm: Any, hidden: Float[Tensor, "*b D"]) -> Float[Tensor, "*b V"]:
        return vlm.language_model.lm_head(hidden)

    def tiny_init(self, vlm: nn.Module) -> None:
        tiny_linear_init(vlm)
        for name, parameter in vlm.named_parameters():
            if name.endswith("patch_embed.proj.weight"):
                patches_(parameter)
            elif name.endswith("pos_embed"):
                normal_(parameter, 0.25)
            elif name.endswith("embed_tokens.weight"):
                normal_(parameter, 0.5)
