"""Small things the policy tests share."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from vlm4vla.policies import ActionQueryPolicy, build_policy
from vlm4vla.run import Run

ARCHITECTURES = (
    "tiny-paligemma-1",
    "tiny-paligemma-2",
    "tiny-kosmos-2",
    "tiny-qwen2.5vl-3b",
    "tiny-qwen3vl-2b",
    "tiny-qwen3vl-30b-a3b",
)
UNTIED = ("tiny-qwen2.5vl-7b", "tiny-qwen3vl-8b", "tiny-qwen3vl-30b-a3b")
TEXTS = (
    "reach the red block",
    "pick up cube",
    "pick up the alphabet soup and place it in the basket",
)


def fresh(name: str, chunk: int = 4, **fields: object) -> ActionQueryPolicy:
    run = Run(name, "tabletop", init="scratch", **fields)
    return build_policy(run, chunk)


@lru_cache(maxsize=32)
def shared(name: str, profile: str = "paper") -> ActionQueryPolicy:
    """A policy that tests only read."""
    return fresh(name, profile=profile).eval()


def images(count: int, side: int = 112, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def targets(count: int, chunk: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    actions = torch.rand(count, chunk, 7, generator=generator) * 1.6 - 0.8
    actions[..., 6] = actions[..., 6].sign()
    return actions, torch.ones(count, chunk)
