"""A backbone that learns to answer questions about pictures, in its family's own chat format.

Shape suffixes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors.torch import load_file
from torch import Tensor

from vlm4vla import weights as stored
from vlm4vla.backbones import backbone
from vlm4vla.families import Inputs
from vlm4vla.families.base import computed_once
from vlm4vla.policies.openvla import grow_vocabulary
from vlm4vla.prompts import to_device
from vlm4vla.recipe import PAPER
from vlm4vla.stages import AuxStage
from vlm4vla.tokenizers import tokenizer_of
from vlm4vla.vlm import VisionLanguageModel
from vlm4vla.weights import PREFIX


class Answering(VisionLanguageModel):
    """A vision-language model whose loss is on answers, and which answers greedily."""

    def own(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Those of a checkpoint that answer; a stage may have trained others beside them."""
        return {name: tensor for name, tensor in weights.items() if name.startswith(PREFIX)}

    def loss(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy over the answers' tokens and what closes them."""
        loss, found = self.text_loss(inputs)
        return loss, {"loss": found["text_loss"], "token_accuracy": found["text_accuracy"]}

    @torch.no_grad()
    def token_accuracy(self, inputs: Inputs) -> list[float]:
        """Of each answer of a `prepare_text` batch, the share of its tokens, its end included,
        that are the likeliest after the true ones before them."""
        inputs = to_device(inputs, self.device)
        hidden, labels = self.family.hidden(self.vlm, inputs, self.recipe), inputs["labels"][:, 1:]
        answered = labels >= 0
        found = self.family.logits(self.vlm, hidden[:, :-1][answered]).argmax(-1)
        right = (found == labels[answered]).float().split(answered.sum(1).tolist())
        return [float(each.mean()) for each in right]

    @torch.no_grad()
    def answers(
        self, images: UInt8[np.ndarray, "B H W 3"], questions: Sequence[str], most: int
    ) -> list[tuple[int, ...]]:
        """Ids of each answer, word by word, up to its end or `most` ids.

        The picture is looked at once, and the whole prompt runs for each word: a cache of keys
        would save most of that, and cost a path of its own in every family.
        """
        end = self.questioner.tail("")[0]
        prompts = [len(self.questioner.tokens(question)) for question in questions]
        length = min(max(prompts) + most, self.questioner.context)
        inputs = to_device(self.prepare_text(images, questions, length=length), self.device)
        rows = torch.arange(len(prompts), device=self.device)
        place, said = inputs["last_index"], list[Tensor]()
        with computed_once(self.vlm.get_submodule(self.row.modules.vision)):
            for _ in range(min(most, length - max(prompts))):
                hidden = self.family.hidden(self.vlm, inputs, self.recipe)
                word = self.family.logits(self.vlm, hidden[rows, place]).argmax(-1)
                said.append(word)
                place = place + 1
                inputs["input_ids"][rows, place] = word
                inputs["attention_mask"][rows, place] = 1
                if all(end in column for column in torch.stack(said, 1).tolist()):
                    break
        return [_until(end, row) for row in torch.stack(said, 1).tolist()]


def _until(end: int, ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(ids[: ids.index(end)] if end in ids else ids)


def build(
    stage: AuxStage,
    words: int,
    weights: Path | None,
    dtype: torch.dtype = torch.float32,
    kind: Callable[..., Answering] = Answering,
) -> Answering:
    """The stage's backbone as it starts, or as a checkpoint's file left it; frozen as it says.

    words: one past the largest id among the answers; tiny vocabularies grow to hold it.
    kind: what is made around the backbone, from its row to the picture's size.
    """
    row = backbone(stage.backbone)
    vlm: Any
    recipe = dataclasses.replace(PAPER, clip_norm=stage.clip_norm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.seed)
        if weights is not None:
            vlm = stored.unfilled(row, dtype)
        elif stage.init == "scratch":
            vlm = stored.from_scratch(row, dtype)
        else:
            vlm = stored.pretrained(row, None, dtype)
        have = vlm.get_input_embeddings().weight.shape[0]
        if words > have:
            grow_vocabulary(vlm, range(have, words))
        model = kind(row, vlm, tokenizer_of(row), recipe, stage.image_px)
    if weights is not None:
        stored.load_weights(model, model.own(load_file(weights)), str(weights))
    model.freeze(stage.freeze)
    return model
