"""The paper's policy: a learnable query after the prompt, read by a small head (3.2).

Shape suffixes: B batch, T tokens, D hidden width, k actions of a chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from vlm4vla.families import Inputs
from vlm4vla.policies.base import VlmPolicy
from vlm4vla.policies.head import POSE, ActionHead
from vlm4vla.prompts import to_device
from vlm4vla.vlm import hidden_width

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe
    from vlm4vla.tokenizers import Tokenizer


AXES = ("x", "y", "z", "roll", "pitch", "yaw")


class ActionQueryPolicy(VlmPolicy):
    """A vision-language model, one query embedding and the head of Table 9.

    The head's positive gripper logit closes.
    """

    def __init__(
        self, row: Backbone, vlm: Any, tokenizer: Tokenizer, recipe: Recipe, chunk: int, **more: Any
    ) -> None:
        super().__init__(row, vlm, tokenizer, recipe, chunk, **more)
        hidden = hidden_width(vlm)
        self.query = nn.Parameter(torch.randn(hidden) * recipe.query_std)
        self.head = ActionHead(hidden, chunk, row.head_width)
        if recipe.query_from_prompt:
            self._query_from_prompt()

    @torch.no_grad()
    def _query_from_prompt(self) -> None:
        last = self.questioner.tokens("")[-1]
        embedding = self.family.embedding(self.vlm)
        assert isinstance(embedding, nn.Embedding)
        self.query.copy_(embedding.weight[last])

    @property
    def slots(self) -> int:
        return 1

    @property
    def after_padding(self) -> bool:
        return self.recipe.query_after_padding

    def forward(self, inputs: Inputs) -> tuple[Float[Tensor, "B k 6"], Float[Tensor, "B k"]]:
        """Normalised pose deltas in [-1, 1] and gripper logits (positive: close)."""
        inputs = to_device(inputs, self.query.device)
        hidden = self.family.hidden_with_query(self.vlm, inputs, self.query, self.recipe)
        return self.head(hidden.to(self.query.dtype))

    def loss(
        self,
        inputs: Inputs,
        actions: Float[Tensor, "B k 7"],
        mask: Float[Tensor, "B k"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Huber on the pose plus weighted cross-entropy on the gripper (eq. 1)."""
        # In fp32 whatever the model's precision: 16 bits round small errors away.
        pose, gripper = (output.float() for output in self(inputs))
        actions, mask = actions.to(pose), mask.to(pose)
        return action_loss(pose, gripper, actions, mask, self.closing_sign, self.recipe)

    def chunks(self, inputs: Inputs) -> Float[Tensor, "B k 7"]:
        pose, gripper = self(inputs)
        closing = torch.where(gripper > 0, self.closing_sign, -self.closing_sign)
        return torch.cat([pose.float(), closing[..., None].float()], dim=-1)


def action_loss(
    pose: Float[Tensor, "B k 6"],
    gripper: Float[Tensor, "B k"],
    actions: Float[Tensor, "B k 7"],
    mask: Float[Tensor, "B k"],
    closing_sign: float,
    recipe: Recipe,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The paper's eq. 1 over the unpadded steps; metrics are detached scalars."""
    steps = mask.sum().clamp(min=1)
    pose_loss = _masked_huber(pose, actions[..., :POSE], mask, recipe.huber_delta) / steps
    closes = actions[..., POSE] * closing_sign > 0
    entropy = functional.binary_cross_entropy_with_logits(
        gripper, closes.to(gripper), weight=mask, reduction="sum"
    )
    gripper_loss = entropy / steps
    loss = recipe.pose_weight * pose_loss + recipe.gripper_weight * gripper_loss
    metrics = {
        "loss": loss.detach(),
        "pose_loss": pose_loss.detach(),
        "gripper_loss": gripper_loss.detach(),
        "gripper_accuracy": (((gripper > 0) == closes) * mask).sum() / steps,
        **_errors(pose.detach(), actions[..., :POSE], mask, steps),
    }
    return loss, metrics


def _errors(
    pose: Float[Tensor, "B k 6"], target: Float[Tensor, "B k 6"], mask: Tensor, steps: Tensor
) -> dict[str, Tensor]:
    """Mean absolute error of each pose dimension, in normalised units."""
    mean = ((pose - target).abs() * mask[..., None]).sum(dim=(0, 1)) / steps
    return {f"error_{axis}": mean[index] for index, axis in enumerate(AXES)}


def _masked_huber(
    pose: Float[Tensor, "B k 6"], target: Float[Tensor, "B k 6"], mask: Tensor, delta: float
) -> Tensor:
    """Mean over the pose, sum over the steps that count."""
    huber = functional.huber_loss(pose, target, delta=delta, reduction="none")
    return (huber.mean(-1) * mask).sum()
