"""Where the paper's text and the authors' released code disagree, field by field.

`RECIPES["paper"]` follows the text and, where it is silent, the plain reading that keeps the
text true (a query after the last real token, an image prefix that is bidirectional).
`RECIPES["official"]` follows the released code, its accidents included, in what the fields
below name, and on SimplerEnv in the evaluation too (`envs.benchmarks.evaluated`: its gripper
opens at the second positive value, and the last step alone decides).

It does not cover what else the released code does: a linear warm-up over a quarter of an epoch
(2,058 steps on CALVIN, 2,500 on Bridge, 250 on LIBERO), 2e-5 for Qwen on Bridge and LIBERO, five
epochs of 8,233 steps on CALVIN, fp16 trainings of Kosmos-2 and PaliGemma, a seed per rank
without sharding; at evaluation bf16 for Qwen, 10 executed steps alone on CALVIN, LIBERO's frames
cropped to 0.9, and five of its settling steps mixed with the policy's actions. Rates, steps and
horizons can be asked for; whatever the profile, policies act in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One reading of how VLM4VLA trains; every field says where it is from."""

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

    # -- optimiser
    weight_decay: float
    """AdamW's. Code: 0; not in the text."""
    betas: tuple[float, float]
    """AdamW's. Code: torch's defaults; not in the text."""
    clip_norm: float | None
    """Code: 1.0 is configured but a default of 0.0 overwrites it: off. Not in the text."""


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
    weight_decay=0.0,
    betas=(0.9, 0.999),
    clip_norm=None,
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
    weight_decay=0.0,
    betas=(0.9, 0.999),
    clip_norm=None,
)
RECIPES: Mapping[str, Recipe] = {"paper": PAPER, "official": OFFICIAL}
