"""Qwen's vision attention over a batch of equal images as one call.

Transformers packs a batch's patches into one sequence and, without flash attention, loops
over its images in Python at every layer. Our images all have one size, so the packed
sequence is a batch: one scaled-dot-product call per layer, same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

NAME = "packed_flash_sdpa"
"""The word "flash" makes transformers hand over the whole packed sequence."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within segments of a packed sequence [1, heads, N, head width].

    max_length_q: the longest segment. Equal segments become a batch; others are split.
    """
    assert cu_seq_lens_q is not None and max_length_q is not None
    heads, packed, width = query.shape[1:]
    segments = len(cu_seq_lens_q) - 1
    if segments * max_length_q != packed:
        return _split_attention(query, key, value, cu_seq_lens_q, scaling), None
    q, k, v = (
        x[0].view(heads, segments, max_length_q, width).transpose(0, 1) for x in (query, key, value)
    )
    out = functional.scaled_dot_product_attention(q, k, v, scale=scaling)
    return out.transpose(1, 2).reshape(1, packed, heads, width), None


def _split_attention(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scaling: float | None
) -> Tensor:
    lengths = ends.diff().tolist()
    parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outs = [functional.scaled_dot_product_attention(q, k, v, scale=scaling) for q, k, v in parts]
    return torch.cat(outs, dim=2).transpose(1, 2)


AttentionInterface.register(NAME, packed_attention)


def use_packed_attention(vlm: Any) -> None:
    """Switch the vision tower over, unless real flash attention was asked for."""
    config = vlm.model.visual.config
    if config._attn_implementation == "sdpa":
        config._attn_implementation = NAME


@dataclass(frozen=True)
class VisionPlan:
    """What a batch of equal images looks like to the tower; computed once per batch size.

    grid: [B, 3] patches in time, height, width (on the CPU, where it is read).
    precomputed: the tower's index tensors, under the names transformers takes them.
    """

    grid: Tensor
    precomputed: dict[str, Any]


def vision_plan(config: Any, batch: int, patches: int, device: torch.device) -> VisionPlan:
    """Cached plan of `batch` square images of `patches` patches each."""
    is_windowed = hasattr(config, "window_size")
    window = (config.window_size, config.patch_size) if is_windowed else None
    side = None if is_windowed else math.isqrt(config.num_position_embeddings)
    return _plan(batch, patches, config.spatial_merge_size, window, side, device)


@lru_cache(maxsize=64)
def _plan(
    batch: int,
    patches: int,
    merge: int,
    window: tuple[int, int] | None,
    position_side: int | None,
    device: torch.device,
) -> VisionPlan:
    side = math.isqrt(patches)
    grid = torch.tensor([[1, side, side]] * batch)
    ends = get_vision_cu_seqlens(grid)
    tensors: dict[str, Any] = {
        "image_position_ids": get_vision_position_ids(grid, merge).to(device),
        "image_cu_seqlens": ends.to(device),
        "image_max_seqlen": patches,
    }
    if window is not None:
        index, window_ends = get_vision_window_index(grid, merge, *window)
        tensors["image_window_index"] = index.to(device)
        tensors["image_cu_window_seqlens"] = window_ends.to(device)
        tensors["image_max_window_seqlen"] = int(window_ends.diff().max())
    if position_side is not None:
        indices, weights = _taps(grid, merge, position_side)
        tensors["image_interp_indices"] = indices.to(device)
        tensors["image_interp_weights"] = weights.to(device)
    return VisionPlan(grid, tensors)


def _taps(grid: Tensor, merge: int, side: int) -> tuple[Tensor, Tensor]:
    """Learned positions to read per patch, and their weights [patches, taps].

    A grid of the table's own size reads one position per patch: the other three taps of the
    interpolation have weight 0 and are left out.
    """
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid, side, mode="bilinear", align_corners=True, spatial_merge_size=merge
    )
    used = weights.ne(0)
    if not bool((used.sum(1) == 1).all()):
        return indices, weights
    first = used.int().argmax(1, keepdim=True)
    return indices.gather(1, first), weights.gather(1, first)
