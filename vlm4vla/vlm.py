"""A vision-language model with its prompts and its images: what policies and stages build on.

Shape suffixes: B batch, T tokens, D hidden width, V vocabulary, S image side.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from vlm4vla import freeze
from vlm4vla.families import Inputs, Template, family_of
from vlm4vla.images import check_images, normalise, resize
from vlm4vla.prompts import Answer, Prompter, to_device

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe
    from vlm4vla.tokenizers import Tokenizer


class VisionLanguageModel(nn.Module):
    """Questions about images in the family's own format, and scores of their answers."""

    def __init__(
        self, row: Backbone, vlm: Any, tokenizer: Tokenizer, recipe: Recipe, image_px: int = 224
    ) -> None:
        super().__init__()
        self.row, self.recipe, self.image_px = row, recipe, image_px
        self.family = family_of(row)
        self.tokenizer = tokenizer
        self.vlm = vlm
        self.family.speed_up(vlm)
        self.questioner = self._prompter(self.family.question_template(recipe))

    def _prompter(self, template: Template) -> Prompter:
        tokens = self.family.image_tokens(self.row, self.input_px(self.image_px))
        context = self.vlm.config.get_text_config().max_position_embeddings
        return Prompter(self.family, self.tokenizer, template, tokens, context)

    # -- input

    def input_px(self, image_px: int) -> int:
        """Side of the image the model sees; images of that size are never resized."""
        return self.family.input_px(self.row, image_px, self.recipe)

    def prepare_text(
        self,
        images: UInt8[np.ndarray, "B H W 3"],
        questions: Sequence[str],
        answers: Sequence[Answer] | None = None,
        length: int | None = None,
    ) -> Inputs:
        """A batch of questions about images, in the family's own format and without slots.

        With answers (text, or ids of the vocabulary), `labels` [B, T] holds each answer and
        its end token and -100 elsewhere.
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
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # -- language

    def lm_logits(self, inputs: Inputs) -> Float[Tensor, "B T V"]:
        """Next-token scores of a `prepare_text` batch."""
        inputs = to_device(inputs, self.device)
        return self.family.lm_logits(self.vlm, inputs, self.recipe)

    def text_loss(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy on the answers of a `prepare_text` batch, over answer tokens alone."""
        inputs = to_device(inputs, self.device)
        hidden = self.family.hidden(self.vlm, inputs, self.recipe)
        return self.answer_loss(hidden, inputs["labels"])

    def answer_loss(
        self, hidden: Float[Tensor, "B T D"], labels: Int[Tensor, "B T"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from the batch's hidden states."""
        labels = labels[:, 1:]
        answered = labels >= 0
        logits = self.family.logits(self.vlm, hidden[:, :-1][answered])
        loss = functional.cross_entropy(logits.float(), labels[answered])
        hits = (logits.argmax(-1) == labels[answered]).float().mean()
        return loss, {"text_loss": loss.detach(), "text_accuracy": hits.detach()}

    # -- training

    @abstractmethod
    def loss(self, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """What training makes small, and detached scalars to watch, "loss" among them."""

    def freeze(self, groups: Iterable[str]) -> None:
        """Make exactly these groups untrainable: "vision", "embed", "llm" (Table 3)."""
        freeze.freeze(self.vlm, self.row, groups)

    def optimised_parameters(self) -> list[nn.Parameter]:
        """Parameters that get a gradient."""
        return [p for p in self.parameters() if p.requires_grad]


def hidden_width(vlm: Any) -> int:
    return int(vlm.config.get_text_config().hidden_size)
