"""pi0's policy: PaliGemma and an action expert, trained by flow matching (A.3; arXiv 2410.24164).

As in the paper: one image, no proprioception. It is stochastic: actions start from noise,
which comes from the observation's seed, so that an episode stays a function of its key.
Shape suffixes: B batch, P prompt tokens, k actions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from envs.api import ACTION_DIM
from vlm4vla.families import Inputs
from vlm4vla.families.base import tiny_linear_init
from vlm4vla.policies.base import VlmPolicy
from vlm4vla.policies.flow_expert import FlowExpert, KeysValues, additive
from vlm4vla.policies.head import POSE
from vlm4vla.prompts import to_device

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe
    from vlm4vla.tokenizers import Tokenizer

ARCHITECTURE = "paligemma-1"
STEPS = 10
"""Of the Euler integration."""
SIGMA = 0.001
"""Noise that is left at time 1; training times end as much before it (open-pi-zero)."""
BETA = (1.5, 1.0)
"""Training times are SIGMA-shifted 1 - Beta: early, noisy ones come more often."""
_STREAM = 0x70_69_30
"""Keeps this kind's draws apart from others with the same key."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(actions [B, k, 7], times [B]) to d actions / d time."""


class Pi0Policy(VlmPolicy):
    """PaliGemma-1 whose keys and values the expert reads layer by layer."""

    def __init__(
        self, row: Backbone, vlm: Any, tokenizer: Tokenizer, recipe: Recipe, chunk: int, **more: Any
    ) -> None:
        self.check(row)
        super().__init__(row, vlm, tokenizer, recipe, chunk, **more)
        self.expert = FlowExpert(vlm.config.text_config, row.head_width)
        if row.tiny:
            tiny_linear_init(self.expert)

    @classmethod
    def check(cls, row: Backbone) -> None:
        if row.architecture != ARCHITECTURE:
            raise ValueError(
                f"pi0 shares PaliGemma-1's attention, so its backbone cannot be {row.name!r}: "
                f"take {'tiny-' if row.tiny else ''}{ARCHITECTURE}, or another policy kind."
            )

    def draws(self, keys: Sequence[Sequence[int]]) -> Inputs:
        """noise [B, k, 7] standard normal; time [B] for training."""
        generators = [np.random.default_rng([_STREAM, *key]) for key in keys]
        shape = (self.chunk, ACTION_DIM)
        noise = np.stack([rng.standard_normal(shape, np.float32) for rng in generators])
        beta = np.array([rng.beta(*BETA) for rng in generators], np.float32)
        return {"noise": torch.from_numpy(noise), "time": torch.from_numpy(train_time(beta))}

    def loss(
        self, inputs: Inputs, actions: Float[Tensor, "B k 7"], mask: Float[Tensor, "B k"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the velocity, averaged over the unpadded steps."""
        inputs = to_device(inputs, self.device)
        actions, mask = actions.to(self.device).float(), mask.to(self.device).float()
        noise, time = inputs["noise"], inputs["time"]
        prompt, allowed = self._prompt(inputs)
        found = self.expert(prompt, allowed, between(noise, actions, time), time)
        loss = flow_loss(found, noise, actions, mask)
        return loss, {"loss": loss.detach()}

    def chunks(self, inputs: Inputs) -> Float[Tensor, "B k 7"]:
        """Ten Euler steps from the inputs' noise; the gripper is rounded to -1 or +1."""
        inputs = to_device(inputs, self.device)
        prompt, allowed = self._prompt(inputs)
        actions = euler(lambda x, t: self.expert(prompt, allowed, x, t), inputs["noise"])
        closing = torch.where(actions[..., POSE:] > 0, 1.0, -1.0)
        return torch.cat([actions[..., :POSE].clamp(-1, 1), closing], dim=-1)

    def _prompt(self, inputs: Inputs) -> tuple[KeysValues, Bool[Tensor, "B k P+k"]]:
        """The prompt's keys and values, and what each action may see."""
        if self.training and self.vlm.is_activation_checkpointing:
            raise ValueError("pi0 reads the prompt's keys, which recomputation does not keep")
        mask = block_mask(inputs["attention_mask"], self.chunk)
        length = inputs["input_ids"].shape[1]
        cache = DynamicCache()
        self.vlm.model(
            input_ids=inputs["input_ids"],
            pixel_values=inputs["pixel_values"].to(self.vlm.dtype),
            attention_mask=additive(mask[:, :length, :length], self.vlm.dtype),
            past_key_values=cache,
            use_cache=True,
        )
        layers: Any = cache.layers
        return [(layer.keys, layer.values) for layer in layers], mask[:, length:]

    def optimised_parameters(self) -> list[nn.Parameter]:
        unread = self.without_effect()
        return [p for p in self.parameters() if p.requires_grad and id(p) not in unread]

    def without_effect(self) -> frozenset[int]:
        """Ids of the prompt's parameters that come after the last keys and values."""
        gemma = self.vlm.model.language_model
        last = gemma.layers[-1]
        attention = last.self_attn
        after = (attention.q_proj, attention.o_proj, last.post_attention_layernorm, last.mlp)
        modules = (*after, gemma.norm)
        return frozenset(id(p) for module in modules for p in module.parameters())


def block_mask(real: Int[Tensor, "B P"], chunk: int) -> Bool[Tensor, "B P+k P+k"]:
    """Who (row) sees whom (column): the prompt sees itself, actions see all; nobody padding."""
    batch, length = real.shape
    seen = torch.cat([real.bool(), real.new_ones(batch, chunk, dtype=torch.bool)], dim=1)
    mask = seen[:, None].repeat(1, length + chunk, 1)
    mask[:, :length, length:] = False
    return mask


def train_time(beta: np.ndarray) -> np.ndarray:
    """Beta-distributed numbers to times in [0, 1 - SIGMA]."""
    return ((1 - SIGMA) * (1 - beta)).astype(np.float32)


def between(
    noise: Float[Tensor, "B k 7"], actions: Float[Tensor, "B k 7"], time: Float[Tensor, " B"]
) -> Float[Tensor, "B k 7"]:
    """The point at `time` on the straight path from noise (0) to the actions (1)."""
    t = time[:, None, None]
    return (1 - (1 - SIGMA) * t) * noise + t * actions


def flow_loss(
    velocity: Float[Tensor, "B k 7"],
    noise: Float[Tensor, "B k 7"],
    actions: Float[Tensor, "B k 7"],
    mask: Float[Tensor, "B k"],
) -> Float[Tensor, ""]:
    """Mean squared distance to the path's own velocity, over the steps that count."""
    wanted = actions - (1 - SIGMA) * noise
    per_step = (velocity - wanted).square().mean(-1)
    return (per_step * mask).sum() / mask.sum().clamp(min=1)


def euler(velocity: Velocity, noise: Float[Tensor, "B k 7"]) -> Float[Tensor, "B k 7"]:
    """Follow a velocity from noise at time 0 to time 1 in STEPS equal steps."""
    actions, time = noise, noise.new_zeros(len(noise))
    for _ in range(STEPS):
        actions = actions + velocity(actions, time) / STEPS
        time = time + 1 / STEPS
    return actions
