"""pi0's action expert: a small Gemma that sees the prompt through shared attention.

Sizes and embeddings are those of open-pi-zero, the code that the paper modified (A.3). Shape
suffixes: B batch, P prompt tokens, k actions of a chunk, W expert width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, GemmaConfig, GemmaModel

from envs.api import ACTION_DIM

TIME_PERIOD = 100.0
"""Longest period of the time embedding, over 2 pi."""
ROPE_THETA = 100.0
"""Actions are few, so their positions turn faster than the prompt's."""

KeysValues = list[tuple[Tensor, Tensor]]
"""Keys and values of the prompt, per layer: [B, heads, P, head width] each."""


class FlowExpert(nn.Module):
    """Velocity of noisy actions. text: config of the prompt's Gemma, whose attention it shares.

    Layers, heads and head width must be the prompt's; widths are its own.
    """

    def __init__(self, text: Any, width: int) -> None:
        super().__init__()
        shared = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
        config = GemmaConfig(
            **{name: getattr(text, name) for name in shared},
            vocab_size=1,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=width,
            intermediate_size=4 * width,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        )
        self.gemma = GemmaModel(config)
        del self.gemma.embed_tokens  # it reads actions, no words
        self.actions = nn.Linear(ACTION_DIM, width)
        self.with_time = nn.Linear(2 * width, width)
        self.mixed = nn.Linear(width, width)
        self.velocity = nn.Linear(width, ACTION_DIM)

    def forward(
        self,
        prompt: KeysValues,
        mask: Bool[Tensor, "B k P+k"],
        noisy: Float[Tensor, "B k 7"],
        time: Float[Tensor, " B"],
    ) -> Float[Tensor, "B k 7"]:
        """d actions / d time at `time`, float32; 0 is noise and 1 the actions."""
        dtype = self.actions.weight.dtype
        out = self.gemma(
            inputs_embeds=self._embedded(noisy.to(dtype), time),
            attention_mask=additive(mask, dtype),
            position_ids=torch.arange(1, 1 + noisy.shape[1], device=noisy.device)[None],
            # A fresh one each time, because attention appends to it.
            past_key_values=DynamicCache([(k.to(dtype), v.to(dtype)) for k, v in prompt]),
            use_cache=True,
        )
        return self.velocity(out.last_hidden_state).float()

    def _embedded(
        self, noisy: Float[Tensor, "B k 7"], time: Float[Tensor, " B"]
    ) -> Float[Tensor, "B k W"]:
        actions = self.actions(noisy)
        times = time_embedding(time, actions.shape[-1])[:, None].expand_as(actions)
        both = torch.cat([times.to(actions), actions], dim=-1)
        return self.mixed(functional.silu(self.with_time(both)))


def time_embedding(time: Float[Tensor, " B"], width: int) -> Float[Tensor, "B W"]:
    """Sines, then cosines, of the time at `width / 2` frequencies from 1 down to 1/100."""
    half = width // 2
    steps = torch.arange(half, device=time.device, dtype=torch.float32) / (half - 1)
    angles = time[:, None].float() * torch.exp(-math.log(TIME_PERIOD) * steps)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def additive(allowed: Bool[Tensor, "B Q K"], dtype: torch.dtype) -> Float[Tensor, "B 1 Q K"]:
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
