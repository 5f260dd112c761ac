"""The published configs of the paper's nine models, as data, so that none needs the hub.

Only what differs from transformers' own defaults is spelled out. The sizes are those that
reproduce Table 9's parameter counts.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def _text(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **more: Any
) -> Config:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


def _qwen25(text: Config, tied: bool) -> Config:
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": text["hidden_size"],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    more = {"max_position_embeddings": 128_000, "rms_norm_eps": 1e-6, "rope_parameters": rope}
    return {
        "tie_word_embeddings": tied,
        "vision_config": vision,
        "text_config": {**text, **more},
    }


QWEN25_3B = _qwen25(_text(2048, 11_008, 36, 16, 2, vocab_size=151_936), tied=True)
QWEN25_7B = _qwen25(_text(3584, 18_944, 28, 28, 4, vocab_size=152_064), tied=False)

_QWEN3_VISION_24 = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
_QWEN3_VISION_27 = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}


def _qwen3(text: Config, vision: Config, tied: bool) -> Config:
    rope = {
        "rope_type": "default",
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
        "rope_theta": 5e6,
    }
    return {
        "tie_word_embeddings": tied,
        "vision_config": {
            **vision,
            "num_heads": 16,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
        },
        "text_config": {
            **text,
            "vocab_size": 151_936,
            "head_dim": 128,
            "max_position_embeddings": 262_144,
            "rms_norm_eps": 1e-6,
            "rope_parameters": rope,
        },
    }


_EXPERTS = {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}
QWEN3_2B = _qwen3(_text(2048, 6144, 28, 16, 8), _QWEN3_VISION_24, tied=True)
QWEN3_4B = _qwen3(_text(2560, 9728, 36, 32, 8), _QWEN3_VISION_24, tied=True)
QWEN3_8B = _qwen3(_text(4096, 12_288, 36, 32, 8), _QWEN3_VISION_27, tied=False)
QWEN3_30B_A3B = _qwen3(_text(2048, 6144, 48, 32, 4, **_EXPERTS), _QWEN3_VISION_27, tied=False)


def _tower(width: int, inner: int, depth: int, **more: Any) -> Config:
    sizes = {"width": width, "inner": inner, "depth": depth, "heads": 16}
    return {**sizes, "patch": 14, "image_size": 224, **more}


def _paligemma(text: Config) -> Config:
    width = text["hidden_size"]
    return {
        "image_token_index": 257_152,
        "projection_dim": width,
        "hidden_size": width,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
            "vision_use_head": False,
            "projection_dim": width,
        },
        "text_config": {**text, "vocab_size": 257_216, "head_dim": 256},
    }


PRISMATIC_7B = {
    "padding": 64,
    "text_config": _text(
        4096, 11_008, 32, 32, 32, vocab_size=32_064, max_position_embeddings=4096, rms_norm_eps=1e-5
    ),
    # DINOv2 ViT-L with four registers, and SigLIP so400m.
    "towers": [
        _tower(1024, 4096, 24, registers=4),
        _tower(1152, 4304, 27),
    ],
}
PALIGEMMA_1 = _paligemma(_text(2048, 16_384, 18, 8, 1, model_type="gemma"))
PALIGEMMA_2 = _paligemma(
    _text(2304, 9216, 26, 8, 4, model_type="gemma2", query_pre_attn_scalar=256, sliding_window=4096)
)
KOSMOS_2 = {
    "latent_query_num": 64,
    "text_config": {
        "vocab_size": 65_037,
        "embed_dim": 2048,
        "layers": 24,
        "ffn_dim": 8192,
        "attention_heads": 32,
        "max_position_embeddings": 2048,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
}
