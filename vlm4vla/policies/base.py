"""What every kind of policy shares: a vision-language model, its prompts, its images, its units.

Shape suffixes: B batch, T tokens, D hidden width, V vocabulary, k actions of a chunk.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from envs.api import ActionSpec, Observation
from vlm4vla import freeze
from vlm4vla.families import Inputs, family_of
from vlm4vla.images import check_images, normalise, resize
from vlm4vla.policies.head import POSE
from vlm4vla.prompts import Prompter, to_device

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe
    from vlm4vla.tokenizers import Tokenizer


GROUP = 16
"""Prompt lengths are rounded up to multiples of this many tokens for batched inference."""


class Normaliser(Protocol):
    """What turns normalised actions back into the benchmark's units."""

    def inverse(self, actions: Float[np.ndarray, "B k 7"]) -> Float[np.ndarray, "B k 7"]: ...


class VlmPolicy(nn.Module):
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
        super().__init__()
        self.row, self.recipe, self.chunk = row, recipe, chunk
        self.family = family_of(row)
        self.image_px = image_px
        self.normaliser = normaliser
        self.action_spec = action_spec
        self.vlm = vlm
        self.family.speed_up(vlm)
        tokens = self.family.image_tokens(row, self.input_px(image_px))
        context = vlm.config.get_text_config().max_position_embeddings
        template = self.family.template(prompt, recipe)
        self.prompter = Prompter(self.family, tokenizer, template, tokens, context)
        question = self.family.question_template(recipe)
        self.questioner = Prompter(self.family, tokenizer, question, tokens, context)

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

    def input_px(self, image_px: int) -> int:
        """Side of the image the model sees; images of that size are never resized."""
        return self.family.input_px(self.row, image_px, self.recipe)

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

    def prepare_text(
        self,
        images: UInt8[np.ndarray, "B H W 3"],
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        length: int | None = None,
    ) -> Inputs:
        """A batch of questions about images, in the family's own format and without slots.

        With answers, `labels` [B, T] holds each answer and its end token and -100 elsewhere.
        `last_index` [B] is the last token of the question, whose scores start the answer.
        """
        pixels = self._pixels(images, len(questions))
        return {**self.questioner.questions(questions, answers, length), "pixel_values": pixels}

    def _pixels(self, images: np.ndarray, texts: int) -> Tensor:
        check_images(images)
        if len(images) != texts:
            raise ValueError(f"{len(images)} images but {texts} sentences")
        images = np.ascontiguousarray(self.resize(images))
        planes = self.family.planes(self.row, torch.from_numpy(images))
        normal = normalise(planes.flatten(0, 1), self.row.image).view(planes.shape)
        return self.family.pixels(self.row, normal, images.shape[1])

    def resize(self, images: UInt8[np.ndarray, "B H W 3"]) -> UInt8[np.ndarray, "B S S 3"]:
        """The pixels the model sees; what a cache of decoded frames may hold instead.

        Frames come to the run's resolution first, then to the model's (paper 3.3).
        """
        side, spec = self.input_px(self.image_px), self.row.image
        if images.shape[1:3] == (side, side):
            return images
        return resize(resize(images, self.image_px, spec.resample), side, spec.resample)

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

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

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

    # -- language

    def lm_logits(self, inputs: Inputs) -> Float[Tensor, "B T V"]:
        """Next-token scores of a `prepare_text` batch."""
        inputs = to_device(inputs, self.device)
        return self.family.lm_logits(self.vlm, inputs, self.recipe)

    def text_loss(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy on the answers of a `prepare_text` batch, over answer tokens alone."""
        inputs = to_device(inputs, self.device)
        hidden = self.family.hidden(self.vlm, inputs, self.recipe)
        labels = inputs["labels"][:, 1:]
        answered = labels >= 0
        logits = self.family.logits(self.vlm, hidden[:, :-1][answered])
        loss = functional.cross_entropy(logits.float(), labels[answered])
        hits = (logits.argmax(-1) == labels[answered]).float().mean()
        return loss, {"text_loss": loss.detach(), "text_accuracy": hits.detach()}

    # -- training

    def freeze(self, groups: Iterable[str]) -> None:
        """Make exactly these groups untrainable: "vision", "embed", "llm" (Table 3)."""
        freeze.freeze(self.vlm, self.row, groups)

    def optimised_parameters(self) -> list[nn.Parameter]:
        """Parameters that get a gradient: neither frozen nor without effect."""
        unused = frozenset[int]()
        if not self.uses_lm_head:
            unused = freeze.unused_by_policies(self.vlm, self.row)
        return [p for p in self.parameters() if p.requires_grad and id(p) not in unused]


def hidden_width(vlm: Any) -> int:
    return int(vlm.config.get_text_config().hidden_size)
