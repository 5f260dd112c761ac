"""Where the paper's text and the authors' released code disagree, field by field.

`RECIPES["paper"]` follows the text and, where it is silent, the plain reading that keeps the
text true (a query after the last real token, an image prefix that is bidirectional).
`RECIPES["official"]` follows the released code, its accidents included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One reading of how VLM4VLA trains and evaluates; every field says where it is from."""

    profile: str
    """Name of the reading: "paper" or "official"."""

    # -- loss (paper eq. 1)
    huber_delta: float
    """Turning point of the pose loss. Text: "modified MSE (Huber)", no value; code: 1.0."""
    pose_weight: float
    """Factor of the pose loss. Text, eq. 1: 1; code: 1."""
    gripper_weight: float
    """Factor of the gripper's cross-entropy. Text, eq. 1: 1; code: 0.01."""

    # -- input
    query_after_padding: bool
    """Code: the query follows the right padding, which then counts as positions. Text: it
    follows the prompt."""
    query_std: float
    """Spread of the query's initial values. Code: zeros; the text only says "learnable"."""
    query_from_prompt: bool
    """The query starts as the token after which the backbone answers questions, rather than
    from noise. Ours, for tiny models only; neither text nor code."""
    image_attention: str
    """PaliGemma's mask: "prefix" (text, A.2.3: image bidirectional, text causal) or "causal"
    (code under flash-attention-2) or "full" (code under SDPA without labels)."""
    kosmos_image_first: bool
    """Code: Kosmos-2's image features stand at index 0, before `<s><image>`; text, A.2.3:
    between `<image>` and `</image>`."""
    qwen_min_pixels: int | None
    """Code: Qwen's processor enlarges images to at least 28*28*256 pixels (224 -> 448)."""

    # -- data
    rescale_after_quantiles: bool
    """Bridge and LIBERO. Code: after q01/q99 normalisation, clip to 0.65 and rescale again."""
    rlds_augmentation: str | None
    """Bridge and LIBERO. Code: "crop+colour" (`vlm4vla.data.augment`); the text names none, so
    the benchmark's row decides (None)."""
    calvin_clip: float
    """CALVIN's relative actions are clipped to this and rescaled to [-1, 1]; code only."""

    # -- optimiser
    weight_decay: float
    """AdamW's. Code: 0; not in the text."""
    betas: tuple[float, float]
    """AdamW's. Code: torch's defaults; not in the text."""
    warmup_steps: Mapping[str, int]
    """Linear warm-up, then constant. Code: 0.25 "epoch"; not in the text. Benchmark -> steps."""
    clip_norm: float | None
    """Code: 1.0 is configured but a default of 0.0 overwrites it: off. Not in the text."""
    lr: Mapping[str, Mapping[str, float]]
    """Benchmark -> family -> learning rate, where it differs from the benchmark's recipe.
    Text, A.2.1: uniform; code: 2e-5 for Qwen on Bridge and LIBERO."""
    calvin_steps: int
    """Text (Figure 4): 30k; code: 5 epochs of 8,233."""
    train_precision: Mapping[str, str]
    """Family -> precision. Code: bf16 Qwen, fp16 the others; not in the text."""
    eval_precision: Mapping[str, str]
    """Family -> precision of rollouts. Code: fp32 for Kosmos and PaliGemma."""
    zero_stage: int
    """DeepSpeed's stage. Code: 2; not in the text."""
    seed_per_rank: bool
    """Code: seed 123 + rank and no sharding of the RLDS stream. Ours: one global order."""

    # -- evaluation
    calvin_horizon: int | None
    """Code: always 10 executed steps on CALVIN; text: full, half and one (None)."""
    simpler_sticky_gripper: bool
    """Code: SimplerEnv's gripper opens only after two consecutive outputs > 0.5."""
    simpler_success_last: bool
    """Code: SimplerEnv's success is judged on the last step alone."""
    libero_centre_crop: float | None
    """Code: LIBERO frames are cropped to this share of the image at evaluation."""
    libero_settle_mixes_policy: bool
    """Code: the settle loop lacks a `continue`, so five iterations mix in policy actions."""


_BF16 = {"qwen_vl": "bf16", "kosmos2": "bf16", "paligemma": "bf16"}
_WARMUP = {"calvin": 2_058, "bridge": 2_500, "libero": 250}

PAPER = Recipe(
    profile="paper",
    huber_delta=1.0,
    pose_weight=1.0,
    gripper_weight=1.0,
    query_after_padding=False,
    query_std=0.02,
    query_from_prompt=False,
    image_attention="prefix",
    kosmos_image_first=False,
    qwen_min_pixels=None,
    rescale_after_quantiles=False,
    rlds_augmentation=None,
    calvin_clip=0.65,
    weight_decay=0.0,
    betas=(0.9, 0.999),
    warmup_steps=_WARMUP,
    clip_norm=None,
    lr={},
    calvin_steps=30_000,
    train_precision=_BF16,
    eval_precision=_BF16,
    zero_stage=2,
    seed_per_rank=False,
    calvin_horizon=None,
    simpler_sticky_gripper=False,
    simpler_success_last=False,
    libero_centre_crop=None,
    libero_settle_mixes_policy=False,
)
OFFICIAL = Recipe(
    profile="official",
    huber_delta=1.0,
    pose_weight=1.0,
    gripper_weight=0.01,
    query_after_padding=True,
    query_std=0.0,
    query_from_prompt=False,
    image_attention="causal",
    kosmos_image_first=True,
    qwen_min_pixels=28 * 28 * 256,
    rescale_after_quantiles=True,
    rlds_augmentation="crop+colour",
    calvin_clip=0.65,
    weight_decay=0.0,
    betas=(0.9, 0.999),
    warmup_steps=_WARMUP,
    clip_norm=None,
    lr={"bridge": {"qwen_vl": 2e-5}, "libero": {"qwen_vl": 2e-5}},
    calvin_steps=5 * 8_233,
    train_precision={"qwen_vl": "bf16", "kosmos2": "fp16", "paligemma": "fp16"},
    eval_precision={"qwen_vl": "bf16", "kosmos2": "fp32", "paligemma": "fp32"},
    zero_stage=2,
    seed_per_rank=True,
    calvin_horizon=10,
    simpler_sticky_gripper=True,
    simpler_success_last=True,
    libero_centre_crop=0.9,
    libero_settle_mixes_policy=True,
)
RECIPES: Mapping[str, Recipe] = {"paper": PAPER, "official": OFFICIAL}
