"""Bytes that autograd keeps for one sample, counted layer by layer without storage.

Counted on the meta device: every width is the row's own, no weight exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import mul
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextMLP

from vlm4vla.backbones import Backbone
from vlm4vla.families import family_of
from vlm4vla.families.base import Tower
from vlm4vla.recipe import PAPER

DTYPES = {2: torch.bfloat16, 4: torch.float32}


def activation_bytes(
    vlm: Any, row: Backbone, tokens: int, image_px: int, width: int, checkpointing: bool
) -> int:
    """Per sample. tokens: image, prompt and query together. width: bytes of a number.

    With checkpointing each layer keeps its input, and one layer at a time keeps the rest.
    """
    vlm = vlm.to(DTYPES[width])
    family_of(row).speed_up(vlm)
    towers = towers_of(row, image_px)
    text, layers = text_layer(vlm, row, tokens), len(text_layers(vlm, row))
    vision = [vision_layer(vlm, row, tower) for tower in towers]
    depths = [len(vision_layers(vlm, row, tower)) for tower in towers]
    ends = width * (pixel_numbers(row, image_px) + 2 * tokens * text_width(vlm, row))
    ends += projector_bytes(vlm, row, towers)
    if not checkpointing:
        # The last feed-forward runs at the query alone, which is next to nothing.
        unread = feed_forward(vlm, row, tokens)
        return layers * text - unread + sum(map(mul, depths, vision)) + ends
    inputs = layers * tokens * text_width(vlm, row)
    inputs += sum(n * t.positions * t.width for n, t in zip(depths, towers, strict=True))
    return width * inputs + max(text, *vision) + ends


def saved_bytes(run: Callable[[], Any], parameters: list[nn.Parameter]) -> int:
    """Bytes of distinct storages that autograd keeps during `run`, parameters left out."""
    known = {p.untyped_storage()._cdata for p in parameters}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in known:
            kept[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _FusedAttention():
        result = run()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del result
    return total


class _FusedKernel(torch.autograd.Function):
    """Keeps what fused attention kernels keep: query, key, value, output; no scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


class _FusedAttention(TorchFunctionMode):
    """The meta device knows no fused attention; this stands in for it while counting."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention and args[0].is_meta:
            return _FusedKernel.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def text_width(vlm: nn.Module, row: Backbone) -> int:
    return int(vlm.get_parameter(f"{row.modules.embedding}.weight").shape[1])


def text_layers(vlm: nn.Module, row: Backbone) -> nn.ModuleList:
    return _list(vlm.get_submodule(row.modules.language), "layers")


def vision_layers(vlm: nn.Module, row: Backbone, tower: Tower) -> nn.ModuleList:
    return _list(vlm.get_submodule(row.modules.vision), tower.layers)


def _list(module: nn.Module, path: str) -> nn.ModuleList:
    layers = module.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return layers


def towers_of(row: Backbone, image_px: int) -> tuple[Tower, ...]:
    family = family_of(row)
    return family.towers(row, family.input_px(row, image_px, PAPER))


def vision_positions(row: Backbone, image_px: int) -> int:
    """Positions of one image in the vision tower; of several the longest's, by a few tokens."""
    return max(tower.positions for tower in towers_of(row, image_px))


def pixel_numbers(row: Backbone, image_px: int) -> int:
    """Numbers of one image's pixels, which patch projections keep (each frame of them)."""
    family = family_of(row)
    side = family.input_px(row, image_px, PAPER)
    frames = int(row.config.get("vision_config", {}).get("temporal_patch_size", 1))
    return 3 * side**2 * frames * len(family.towers(row, side))


def text_layer(vlm: nn.Module, row: Backbone, tokens: int) -> int:
    """Bytes one decoder layer keeps of `tokens` tokens."""
    layer = text_layers(vlm, row)[0]
    config: Any = vlm.config
    config = config.get_text_config()
    dtype = next(layer.parameters()).dtype
    hidden = _activation(1, tokens, text_width(vlm, row), dtype=dtype)
    mask = torch.zeros(1, 1, tokens, tokens, dtype=dtype, device="meta")
    if row.family == "kosmos2":
        return saved_bytes(lambda: layer(hidden, attention_mask=mask), list(layer.parameters()))
    extra = _dense_experts(layer, config, tokens, dtype) if hasattr(config, "num_experts") else 0
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    angles = torch.zeros(1, tokens, width, dtype=dtype, device="meta")
    sees = mask if row.family == "paligemma" else None

    def run() -> Any:
        return layer(hidden, position_embeddings=(angles, angles), attention_mask=sees)

    return extra + saved_bytes(run, list(layer.parameters()))


def feed_forward(vlm: nn.Module, row: Backbone, tokens: int) -> int:
    """Bytes the feed-forward of one decoder layer keeps of `tokens` tokens."""
    layer = text_layers(vlm, row)[0]
    config: Any = vlm.config
    config = config.get_text_config()
    dtype = next(layer.parameters()).dtype
    extra = _dense_experts(layer, config, tokens, dtype) if hasattr(config, "num_experts") else 0
    module = layer.get_submodule("ffn" if row.family == "kosmos2" else "mlp")
    hidden = _activation(1, tokens, text_width(vlm, row), dtype=dtype)
    return extra + saved_bytes(lambda: module(hidden), list(module.parameters()))


def _dense_experts(layer: Any, config: Any, tokens: int, dtype: torch.dtype) -> int:
    """Put a dense MLP as wide as a token's experts in their place; bytes it does not keep.

    Routing depends on data, which the meta device has none of. Each chosen expert keeps its
    own copy of the token's input and output.
    """
    chosen = config.num_experts_per_tok
    with torch.device("meta"):
        wide = Qwen3VLMoeTextMLP(config, chosen * config.moe_intermediate_size)
    layer.mlp = wide.to(dtype)
    return int(2 * chosen * tokens * config.hidden_size * dtype.itemsize)


def vision_layer(vlm: nn.Module, row: Backbone, tower: Tower) -> int:
    """Bytes one layer of a vision tower keeps of one image."""
    layer = vision_layers(vlm, row, tower)[0]
    dtype = next(layer.parameters()).dtype
    positions, width = tower.positions, tower.width
    if row.family != "qwen_vl":
        hidden = _activation(1, positions, width, dtype=dtype)
        more = {} if row.family == "prismatic" else {"attention_mask": None}
        return saved_bytes(lambda: layer(hidden, **more), list(layer.parameters()))
    hidden = _activation(positions, width, dtype=dtype)
    angles = torch.zeros(
        positions, width // row.config["vision_config"]["num_heads"], device="meta"
    )

    def run() -> Any:
        ends = torch.tensor([0, positions])
        return layer(
            hidden, cu_seqlens=ends, max_seqlen=positions, position_embeddings=(angles, angles)
        )

    return saved_bytes(run, list(layer.parameters()))


def projector_bytes(vlm: nn.Module, row: Backbone, towers: Sequence[Tower]) -> int:
    """Bytes kept between the towers and the language model (Qwen's deepstack included).

    Features of several towers stand side by side, those of special tokens left out.
    """
    projector = vlm.get_submodule(row.modules.projector)
    dtype = next(projector.parameters()).dtype
    positions, width = min(t.positions for t in towers), sum(t.width for t in towers)
    features = _activation(1, positions, width, dtype=dtype)
    one = saved_bytes(lambda: projector(features), list(projector.parameters()))
    deep = row.config.get("vision_config", {}).get("deepstack_visual_indexes", ())
    return one * (1 + len(deep))


def _activation(*shape: int, dtype: torch.dtype) -> Tensor:
    # Not a leaf: what a layer keeps of its input is an activation of the layer before.
    return torch.zeros(*shape, dtype=dtype, device="meta", requires_grad=True) * 1
