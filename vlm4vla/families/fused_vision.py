"""DINOv2 and SigLIP side by side: the vision towers of Prismatic models, under timm's names.

Both are plain vision transformers read after their last but one block, without the final
norm (arXiv 2402.07865). What lies beyond that point has no effect and is not built. Shape
suffixes: B batch, N patches, W tower width, S image side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

EPS = 1e-6


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        batch, length, width = x.shape
        packed = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(*packed)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        return self.fc2(functional.gelu(self.fc1(x)))


class Scale(nn.Module):
    """A learned factor per channel. The released name avoids "gamma", which loaders rename."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        return x * self.scale_factor


class Block(GradientCheckpointingLayer):
    def __init__(self, width: int, inner: int, heads: int, scaled: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, EPS), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, EPS), FeedForward(width, inner)
        self.ls1, self.ls2 = (Scale(width) if scaled else nn.Identity() for _ in range(2))

    def forward(self, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B N W"]:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Tower(nn.Module):
    """One vision transformer. registers: DINOv2's, which come with a class token; SigLIP has 0."""

    def __init__(
        self,
        width: int,
        inner: int,
        depth: int,
        heads: int,
        patch: int,
        image_size: int,
        registers: int = 0,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(width, patch)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (image_size // patch) ** 2, width))
        self.registers = registers
        if registers:
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
            self.reg_token = nn.Parameter(0.02 * torch.randn(1, registers, width))
        # Its layer scales are DINOv2's too.
        blocks = (Block(width, inner, heads, registers > 0) for _ in range(depth - 1))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B N W"]:
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = 0
        if self.registers:
            first = torch.cat([self.cls_token, self.reg_token], dim=1)
            x, prefix = torch.cat([first.expand(len(x), -1, -1), x], dim=1), first.shape[1]
        for block in self.blocks:
            x = block(x)
        return x[:, prefix:]


class FusedTowers(nn.Module):
    """Both towers on one image in two normalisations; their features side by side."""

    def __init__(self, towers: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        first, second = towers
        self.featurizer, self.fused_featurizer = Tower(**first), Tower(**second)
        self.width = int(first["width"] + second["width"])

    def forward(self, pixels: Float[Tensor, "B 6 S S"]) -> Float[Tensor, "B N W"]:
        one, other = pixels.split(3, dim=1)
        return torch.cat([self.featurizer(one), self.fused_featurizer(other)], dim=-1)
