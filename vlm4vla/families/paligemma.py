"""PaliGemma 1 and 2: a SigLIP tower, one linear projector and Gemma (paper A.2.3)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from vlm4vla.families.base import (
    ACTION_IDS,
    Family,
    Inputs,
    Template,
    Tower,
    normal_,
    patches_,
    tiny_linear_init,
    tower_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe


class PaliGemma(Family):
    image_token = "<image>"
    pad_token = "<pad>"

    def model_class(self, row: Backbone) -> Any:
        return PaliGemmaForConditionalGeneration

    def build(self, row: Backbone) -> PreTrainedModel:
        return PaliGemmaForConditionalGeneration(PaliGemmaConfig(**row.config))

    def action_ids_end(self, row: Backbone, count: int = ACTION_IDS) -> int:
        # Beyond the image's own token lie a few spare ids; before it, locations and segments.
        if row.tiny:
            return super().action_ids_end(row, count)
        return int(row.config["image_token_index"])

    def input_px(self, row: Backbone, image_px: int, recipe: Recipe) -> int:
        # The tower has one grid of positions; other sizes are other hub models.
        return int(row.config["vision_config"]["image_size"])

    def image_tokens(self, row: Backbone, input_px: int) -> int:
        return (input_px // row.config["vision_config"]["patch_size"]) ** 2

    def towers(self, row: Backbone, input_px: int) -> tuple[Tower, ...]:
        return (tower_of(row, "encoder.layers", input_px),)

    def planes(self, row: Backbone, images: UInt8[Tensor, "B S S 3"]) -> UInt8[Tensor, "B 1 3 P"]:
        return images.permute(0, 3, 1, 2).flatten(2)[:, None]

    def pixels(self, row: Backbone, planes: Float[Tensor, "B 1 3 P"], side: int) -> Tensor:
        return planes.view(-1, 3, side, side)

    def template(self, style: str, recipe: Recipe) -> Template:
        return Template("", "<bos>{text}\n", "<eos>")

    def question_template(self, recipe: Recipe) -> Template:
        return Template("", "<bos>{text}\n", "<eos>")

    def hidden(self, vlm: Any, inputs: Inputs, recipe: Recipe) -> Float[Tensor, "B T D"]:
        mask = self._mask(vlm, inputs, recipe)
        output = vlm.model(
            input_ids=inputs["input_ids"],
            pixel_values=inputs["pixel_values"].to(vlm.dtype),
            attention_mask=mask,
            use_cache=False,
        )
        return output.last_hidden_state

    def last_feed_forward(self, vlm: Any) -> nn.Module:
        layer: nn.Module = vlm.model.language_model.layers[-1].mlp
        return layer

    def logits(self, vlm: Any, hidden: Float[Tensor, "*b D"]) -> Float[Tensor, "*b V"]:
        logits = vlm.lm_head(hidden)
        cap = getattr(vlm.config.text_config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def tiny_init(self, vlm: nn.Module) -> None:
        tiny_linear_init(vlm.get_submodule("model.language_model"))
        tiny_linear_init(vlm.get_submodule("model.multi_modal_projector"))
        for name, parameter in vlm.named_parameters():
            if name.endswith("patch_embedding.weight"):
                patches_(parameter)
            elif name.endswith("position_embedding.weight"):
                normal_(parameter, 1.0)
            elif name.endswith("embed_tokens.weight"):
                # Gemma multiplies words by sqrt(D); this is what is left of 0.5.
                normal_(parameter, 0.5 * parameter.shape[1] ** -0.5)

    def _mask(self, vlm: Any, inputs: Inputs, recipe: Recipe) -> Float[Tensor, "b 1 T T"]:
        """Additive mask: one for all samples, unless padding can be seen (official)."""
        ids = inputs["input_ids"]
        prefix = inputs["pixel_values"].shape[-1] // vlm.config.vision_config.patch_size
        allowed = _allowed(ids.shape[1], prefix**2, recipe.image_attention, ids.device)
        if recipe.query_after_padding or recipe.image_attention == "full":
            allowed = allowed & inputs["attention_mask"].bool()[:, None, None, :]
        return _additive(allowed, vlm.dtype)


@lru_cache(maxsize=64)
def _allowed(length: int, prefix: int, attention: str, device: torch.device) -> Tensor:
    """Bool [1, 1, T, T]: which key (last axis) each query (third axis) may see."""
    if attention == "full":
        return torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    allowed = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if attention == "prefix":
        allowed[:prefix, :prefix] = True
    return allowed[None, None]


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    # Gemma 2 runs eager attention (its scores are soft-capped), which adds the mask.
    blocked = torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, blocked
    )
