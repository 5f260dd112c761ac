"""One row per vision-language model of the paper, and a tiny variant of each.

`python -m vlm4vla.backbones [--json]` prints sizes computed from the rows (Tables 3 and 9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

from envs.api import did_you_mean
from vlm4vla import tiny


@dataclass(frozen=True)
class ImageSpec:
    """How an RGB image becomes a model's pixels.

    mean, std: per channel on the 0..1 scale. resample: "bicubic" (with antialias) or "area".
    fixed_px: the only side the tower takes (pixels), None if any multiple of its patches.
    scale: side of the model's image over the side asked for; below 1 for tiny rows.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed_px: int | None = None
    resample: str = "bicubic"
    scale: float = 1.0


@dataclass(frozen=True)
class Modules:
    """Paths of a model's parts inside the transformers model.

    merger_in_vision: the projector lies inside the vision tower and freezes with it
    (Qwen's merger, as the authors count it; PaliGemma's projector does not).
    """

    vision: str
    projector: str
    language: str
    embedding: str
    lm_head: str


@dataclass(frozen=True)
class Backbone:
    """A vision-language model that can become a policy.

    name: as in the paper's tables (`paper_results.json`). family: key of `families.FAMILIES`.
    architecture: rows of one architecture differ in sizes alone and share tiny weights.
    revision: None where no source names one. config: arguments of the transformers config.
    head_width: the policy head's 1024 of Table 9; all of the head's widths scale with it.
    """

    name: str
    family: str
    architecture: str
    hub_id: str
    config: Mapping[str, Any]
    image: ImageSpec
    modules: Modules
    revision: str | None = None
    head_width: int = 1024
    tiny: bool = False


_HALF = (0.5, 0.5, 0.5)
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_QWEN_MODULES = Modules(
    "model.visual",
    "model.visual.merger",
    "model.language_model",
    "model.language_model.embed_tokens",
    "lm_head",
)
_PALIGEMMA_MODULES = Modules(
    "model.vision_tower",
    "model.multi_modal_projector",
    "model.language_model",
    "model.language_model.embed_tokens",
    "lm_head",
)
_KOSMOS_MODULES = Modules(
    "vision_model",
    "image_to_text_projection",
    "text_model.model",
    "text_model.model.embed_tokens",
    "text_model.lm_head",
)


def _qwen25(
    name: str, hub_id: str, tied: bool, text: Mapping[str, Any], out_hidden_size: int
) -> Backbone:
    rope = dict(rope_type="default", mrope_section=[16, 24, 24], rope_theta=1e6)
    vision = dict(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        out_hidden_size=out_hidden_size,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        window_size=112,
        fullatt_block_indexes=[7, 15, 23, 31],
    )
    config = dict(
        tie_word_embeddings=tied,
        vision_config=vision,
        text_config=dict(
            text, max_position_embeddings=128_000, rms_norm_eps=1e-6, rope_parameters=rope
        ),
    )
    return Backbone(name, "qwen_vl", "qwen2.5-vl", hub_id, config, ImageSpec(*_CLIP), _QWEN_MODULES)


_QWEN3_VISION_SMALL = dict(
    depth=24, hidden_size=1024, intermediate_size=4096, deepstack_visual_indexes=[5, 11, 17]
)
_QWEN3_VISION_LARGE = dict(
    depth=27, hidden_size=1152, intermediate_size=4304, deepstack_visual_indexes=[8, 16, 24]
)


def _qwen3(
    name: str, hub_id: str, tied: bool, text: Mapping[str, Any], vision: Mapping[str, Any]
) -> Backbone:
    rope = dict(
        rope_type="default", mrope_section=[24, 20, 20], mrope_interleaved=True, rope_theta=5e6
    )
    config = dict(
        tie_word_embeddings=tied,
        vision_config=dict(
            vision,
            num_heads=16,
            out_hidden_size=text["hidden_size"],
            patch_size=16,
            spatial_merge_size=2,
            temporal_patch_size=2,
            num_position_embeddings=2304,
        ),
        text_config=dict(
            text,
            vocab_size=151_936,
            head_dim=128,
            max_position_embeddings=262_144,
            rms_norm_eps=1e-6,
            rope_parameters=rope,
        ),
    )
    architecture = "qwen3-vl-moe" if "num_experts" in text else "qwen3-vl"
    image = ImageSpec(_HALF, _HALF)
    return Backbone(name, "qwen_vl", architecture, hub_id, config, image, _QWEN_MODULES)


def _paligemma(name: str, hub_id: str, text: Mapping[str, Any]) -> Backbone:
    vision = dict(
        model_type="siglip_vision_model",
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        vision_use_head=False,
    )
    width = text["hidden_size"]
    config = dict(
        image_token_index=257_152,
        projection_dim=width,
        hidden_size=width,
        vision_config=dict(vision, projection_dim=width),
        text_config=dict(text, vocab_size=257_216, head_dim=256, num_attention_heads=8),
    )
    image = ImageSpec(_HALF, _HALF, fixed_px=224)
    return Backbone(name, "paligemma", name, hub_id, config, image, _PALIGEMMA_MODULES)


_GEMMA1 = dict(
    model_type="gemma",
    hidden_size=2048,
    intermediate_size=16_384,
    num_hidden_layers=18,
    num_key_value_heads=1,
)
_GEMMA2 = dict(
    model_type="gemma2",
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_key_value_heads=4,
    query_pre_attn_scalar=256,
    sliding_window=4096,
)
_KOSMOS2 = dict(
    latent_query_num=64,
    text_config=dict(
        vocab_size=65_037, embed_dim=2048, layers=24, ffn_dim=8192, attention_heads=32
    ),
    vision_config=dict(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    ),
)


def _text(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **more: Any
) -> dict[str, Any]:
    return dict(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        **more,
    )


_EXPERTS = dict(
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
    decoder_sparse_step=1,
    norm_topk_prob=True,
)
_FULL: Mapping[str, Backbone] = {
    "qwen2.5vl-3b": _qwen25(
        "qwen2.5vl-3b",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        True,
        _text(2048, 11_008, 36, 16, 2, vocab_size=151_936),
        2048,
    ),
    "qwen2.5vl-7b": _qwen25(
        "qwen2.5vl-7b",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        False,
        _text(3584, 18_944, 28, 28, 4, vocab_size=152_064),
        3584,
    ),
    "qwen3vl-2b": _qwen3(
        "qwen3vl-2b",
        "Qwen/Qwen3-VL-2B-Instruct",
        True,
        _text(2048, 6144, 28, 16, 8),
        _QWEN3_VISION_SMALL,
    ),
    "qwen3vl-4b": _qwen3(
        "qwen3vl-4b",
        "Qwen/Qwen3-VL-4B-Instruct",
        True,
        _text(2560, 9728, 36, 32, 8),
        _QWEN3_VISION_SMALL,
    ),
    "qwen3vl-8b": _qwen3(
        "qwen3vl-8b",
        "Qwen/Qwen3-VL-8B-Instruct",
        False,
        _text(4096, 12_288, 36, 32, 8),
        _QWEN3_VISION_LARGE,
    ),
    "qwen3vl-30b-a3b": _qwen3(
        "qwen3vl-30b-a3b",
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        False,
        _text(2048, 6144, 48, 32, 4, **_EXPERTS),
        _QWEN3_VISION_LARGE,
    ),
    "paligemma-1": _paligemma("paligemma-1", "google/paligemma-3b-pt-224", _GEMMA1),
    "paligemma-2": _paligemma("paligemma-2", "google/paligemma2-3b-pt-224", _GEMMA2),
    "kosmos-2": Backbone(
        "kosmos-2",
        "kosmos2",
        "kosmos-2",
        "microsoft/kosmos-2-patch14-224",
        _KOSMOS2,
        ImageSpec(*_CLIP, fixed_px=224),
        _KOSMOS_MODULES,
    ),
}
BACKBONES: Mapping[str, Backbone] = {
    **_FULL,
    **{row.name: row for row in map(tiny.derive, _FULL.values())},
}
"""Every row by name: the paper's nine, and `tiny-` + each of their names."""


def backbone(name: str) -> Backbone:
    """The row called `name`; ValueError with the closest name otherwise."""
    if name not in BACKBONES:
        raise did_you_mean("backbone", name, BACKBONES)
    return BACKBONES[name]


def full_rows() -> tuple[Backbone, ...]:
    """The paper's nine, in its order."""
    return tuple(_FULL.values())


if __name__ == "__main__":
    from vlm4vla.sizes import main

    main()
