"""The tiny variant of every row: the same code, smaller sizes, learnable on a laptop.

Sizes are those measured to learn on two cores: 112 px images, 16 image tokens after the
merge (32 latents for Kosmos-2), hidden 64, two vision and two text layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlm4vla.tokenizers import TINY_SIZE, tiny_tokenizer

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone

HIDDEN = 64
LAYERS = 2
IMAGE_SCALE = 0.5
"""Tiny models see half the side of the full ones: 112 px where those see 224."""
FAINTNESS = 8
"""Tiny models' pixels are so much fainter than unit variance, and their patch weights so much
larger: steps that suit every other weight would wreck a patch embedding of unit gain."""

_id = tiny_tokenizer().token_id
_TEXT = {
    "vocab_size": TINY_SIZE,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": _id("<pad>"),
    "bos_token_id": _id("<bos>"),
    "eos_token_id": _id("<eos>"),
}
_SIGLIP = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 28,
}
_TOWER = {
    "width": HIDDEN // 2,
    "inner": HIDDEN,
    "depth": LAYERS + 1,
    "heads": 4,
    "patch": 28,
    "image_size": 112,
}
_QWEN_TEXT = dict(_TEXT, num_key_value_heads=2)
_QWEN_VISION = {
    "depth": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_heads": 4,
    "out_hidden_size": HIDDEN,
    "patch_size": 14,
    "spatial_merge_size": 2,
    # One frame is one frame: a second, equal one would double the patch weights for nothing.
    "temporal_patch_size": 1,
}
_QWEN_IDS = {
    "image_token_id": _id("<|image_pad|>"),
    "video_token_id": _id("<|video_pad|>"),
    "vision_start_token_id": _id("<|vision_start|>"),
    "vision_end_token_id": _id("<|vision_end|>"),
}


def _rope(sections: tuple[int, int, int]) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": list(sections), "rope_theta": 10_000.0}


_PALIGEMMA = {
    "image_token_index": _id("<image>"),
    "projection_dim": HIDDEN,
    "hidden_size": HIDDEN,
    "vision_config": dict(_SIGLIP, projection_dim=HIDDEN),
}
_GEMMA = dict(_TEXT, head_dim=16, num_key_value_heads=1)
_QWEN3 = dict(
    _QWEN_IDS,
    vision_config=dict(_QWEN_VISION, num_position_embeddings=64, deepstack_visual_indexes=[0]),
)
_QWEN3_TEXT = dict(_QWEN_TEXT, head_dim=16, rope_parameters=_rope((4, 2, 2)))
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN}

SIZES: Mapping[str, dict[str, Any]] = {
    "paligemma-1": dict(_PALIGEMMA, text_config=_GEMMA),
    "paligemma-2": dict(_PALIGEMMA, text_config=dict(_GEMMA, query_pre_attn_scalar=16)),
    "kosmos-2": {
        "latent_query_num": 32,
        "text_config": {
            "vocab_size": TINY_SIZE,
            "embed_dim": HIDDEN,
            "layers": LAYERS,
            "ffn_dim": 2 * HIDDEN,
            "attention_heads": 4,
            "max_position_embeddings": 512,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "pad_token_id": _id("<pad>"),
            "bos_token_id": _id("<s>"),
            "eos_token_id": _id("</s>"),
        },
        "vision_config": _SIGLIP,
    },
    "prismatic": {
        "padding": 0,
        "text_config": dict(_TEXT, num_key_value_heads=4),
        # One block more than is read.
        "towers": [dict(_TOWER, registers=2), _TOWER],
    },
    "qwen2.5-vl": dict(
        _QWEN_IDS,
        text_config=dict(_QWEN_TEXT, rope_parameters=_rope((2, 3, 3))),
        vision_config=dict(_QWEN_VISION, window_size=56, fullatt_block_indexes=[1]),
    ),
    "qwen3-vl": dict(_QWEN3, text_config=_QWEN3_TEXT),
    "qwen3-vl-moe": dict(_QWEN3, text_config=dict(_QWEN3_TEXT, **_EXPERTS)),
}
"""What a tiny config changes of the full one, per architecture."""


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `changes` laid over it, dictionaries recursively."""
    result = dict(config)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and key.endswith("_config"):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def derive(row: Backbone) -> Backbone:
    """The tiny variant of a full row: `tiny-` + its name, and nothing hub-related."""
    image = dataclasses.replace(
        row.image,
        mean=(128 / 255,) * 3,
        std=(FAINTNESS * 64 / 255,) * 3,
        resample="area",
        scale=IMAGE_SCALE,
        fixed_px=None if row.image.fixed_px is None else int(row.image.fixed_px * IMAGE_SCALE),
    )
    return dataclasses.replace(
        row,
        name=f"tiny-{row.name}",
        config=merged(row.config, SIZES[row.architecture]),
        image=image,
        head_width=128,
        tiny=True,
    )
