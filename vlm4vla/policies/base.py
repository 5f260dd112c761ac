"""What every kind of policy shares: a vision-language model, its prompts, its images, its units.

Shape suffixes: B batch, T tokens, D hidden width, V vocabulary, k actions of a chunk.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from envs.api import ActionSpec, Observation
from vlm4vla import freeze
from vlm4vla.families import Inputs
from vlm4vla.policies.head import POSE
from vlm4vla.vlm import VisionLanguageModel

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe
    from vlm4vla.tokenizers import Tokenizer


GROUP = 16
"""Prompt lengths are rounded up to multiples of this many tokens for batched inference."""


class Normaliser(Protocol):
    """What turns normalised actions back into the benchmark's units."""

    def inverse(self, actions: Float[np.ndarray, "B k 7"]) -> Float[np.ndarray, "B k 7"]: ...


class VlmPolicy(VisionLanguageModel):
    """A vision-language model that acts; a kind adds what reads actions out of it.

    chunk: actions per prediction. action_spec: the benchmark's; both `loss` and `act` speak
    its gripper sign. None reads as +1 closes.
    """

    uses_lm_head: ClassVar[bool] = False
    """Whether actions depend on the scores of the vocabulary."""

    def __init__(
        self,
        row: Backbone,
        vlm: Any,
        tokenizer: Tokenizer,
        recipe: Recipe,
        chunk: int,
        *,
        prompt: str = "native",
        image_px: int = 224,
        normaliser: Normaliser | None = None,
        action_spec: ActionSpec | None = None,
    ) -> None:
        super().__init__(row, vlm, tokenizer, recipe, image_px)
        self.chunk = chunk
        self.normaliser = normaliser
        self.action_spec = action_spec
        self.prompter = self._prompter(self.family.template(prompt, recipe))

    # -- what a kind answers

    @classmethod
    def check(cls, row: Backbone) -> None:
        """ValueError for a backbone that the kind cannot use."""
        return None

    @abstractmethod
    def loss(
        self,
        inputs: Inputs,
        actions: Float[Tensor, "B k 7"],
        mask: Float[Tensor, "B k"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What training makes small, and detached scalars to watch.

        actions: normalised, the gripper at -1 / +1 in the sign of `action_spec`.
        mask: 1 for real steps of the chunk, 0 for padding past an episode's end.
        """

    @abstractmethod
    def chunks(self, inputs: Inputs) -> Float[Tensor, "B k 7"]:
        """Normalised actions; the gripper at -1 / +1 in the sign of `action_spec`."""

    @property
    def slots(self) -> int:
        """Tokens that the kind appends to a prompt."""
        return 0

    @property
    def after_padding(self) -> bool:
        """Whether those tokens follow the padding rather than the prompt."""
        return False

    def draws(self, keys: Sequence[Sequence[int]]) -> Inputs:
        """The random numbers of a batch, one key per sample; nothing for most kinds.

        A sample's numbers depend on its key alone: (seed, step, slot) in training, the
        observation's seed when acting.
        """
        return {}

    # -- input

    def prepare(
        self,
        images: UInt8[np.ndarray, "B H W 3"],
        instructions: Sequence[str],
        length: int | None = None,
    ) -> Inputs:
        """A right-padded CPU batch, every tensor batch first.

        length: total tokens to pad to (image and slots included), None for the longest.
        ValueError for images that are not uint8 [B, H, W, 3] and for prompts that do not fit.
        """
        pixels = self._pixels(images, len(instructions))
        batch = self.prompter.actions(instructions, length, self.after_padding, self.slots)
        return {**batch, "pixel_values": pixels}

    @property
    def batch_invariant(self) -> bool:
        """False for mixtures of experts: how many tokens an expert gets, and with it the shape
        of its products and their rounding, depends on who shares the batch."""
        return getattr(self.vlm.config.get_text_config(), "num_experts", None) is None

    def group(self, observation: Observation) -> int:
        """Total tokens, rounded up: prompts of one group share a batch at one fixed shape.

        It depends on the observation alone, so company never changes an episode's actions.
        """
        used = len(self.prompter.tokens(observation.instruction)) + self.slots
        return min(-(-used // GROUP) * GROUP, self.prompter.context)

    # -- output

    @torch.no_grad()
    def act(
        self, observations: Sequence[Observation], length: int | None = None
    ) -> Float[np.ndarray, "B k 7"]:
        """Chunks of actions, float32, in the units and gripper sign of the benchmark."""
        images = np.stack([observation.image for observation in observations])
        texts = [observation.instruction for observation in observations]
        draws = self.draws([(observation.seed,) for observation in observations])
        was_training = self.training
        self.eval()
        chunks = self.chunks({**self.prepare(images, texts, length), **draws})
        self.train(was_training)
        return self._in_units(chunks.float().cpu().numpy())

    def _in_units(self, chunks: np.ndarray) -> np.ndarray:
        if self.normaliser is None:
            return chunks
        actions = np.asarray(self.normaliser.inverse(chunks), dtype=np.float32).copy()
        actions[..., POSE] = chunks[..., POSE]
        return actions

    @property
    def closing_sign(self) -> float:
        return 1.0 if self.action_spec is None else float(self.action_spec.gripper_close)

    def optimised_parameters(self) -> list[nn.Parameter]:
        """Parameters that get a gradient: neither frozen nor without effect."""
        unused = frozenset[int]()
        if not self.uses_lm_head:
            unused = freeze.unused_by_policies(self.vlm, self.row)
        return [p for p in self.parameters() if p.requires_grad and id(p) not in unused]
