"""Omni-generation (4.2, A.6): a backbone's image tokens must tell depth, classes and colours.

A small decoder reads the maps out of the hidden states at the image's tokens while the backbone
goes on answering questions; afterwards the decoder is thrown away. The paper's own is a
diffusion model (`vlm4vla.aux.omni_diffusion`); the one here regresses, and is much cheaper.

Shape suffixes: B batch, T tokens, N image tokens, D hidden width, C classes, S side of a map.
"""

from __future__ import annotations

import importlib
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from envs.api import did_you_mean
from vlm4vla.aux.omni_data import Maps
from vlm4vla.aux.sft import Answering
from vlm4vla.families import Inputs
from vlm4vla.prompts import to_device
from vlm4vla.vlm import hidden_width

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe
    from vlm4vla.tokenizers import Tokenizer

GRID = 7
"""Cells of the coarsest map, a side; maps are this many times a power of two."""
REACH = 3.0
"""Metres at which depth maps end; what is farther counts as there."""
WIDTH = 128
"""Channels of a decoder."""
COLOURS = 3
SPREAD = 1.0
"""Of the queries and places at first: small ones would all look at the same tokens for long."""
Metrics = dict[str, Tensor]


class Decoder(nn.Module):
    """Maps from image tokens. A map stacks depth, one channel per class, and three colours."""

    def __init__(self, hidden: int, tokens: int, classes: int, size: int, width: int) -> None:
        super().__init__()
        doublings = math.log2(size / GRID)
        if doublings < 0 or doublings % 1:
            sides = ", ".join(str(GRID * 2**n) for n in range(6))
            raise ValueError(f"maps of {size} pixels a side cannot be decoded: ask for {sides}")
        self.classes, self.size = classes, size
        self.enter = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))
        self.places = nn.Parameter(torch.randn(tokens, width) * SPREAD)
        self.queries = nn.Parameter(torch.randn(GRID**2, width) * SPREAD)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.grow = nn.Sequential(*(_doubled(width) for _ in range(int(doublings))))

    @property
    def channels(self) -> int:
        return 1 + self.classes + COLOURS

    def features(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B w S S"]:
        """Queries on a coarse grid look at the tokens once; convolutions grow them to the map."""
        seen = self.enter(tokens.to(self.places.dtype)) + self.places
        queries = self.queries.expand(len(seen), -1, -1)
        cells = queries + self.attend(queries, seen, seen, need_weights=False)[0]
        grown: Tensor = self.grow(cells.mT.unflatten(2, (GRID, GRID)))
        return grown

    @abstractmethod
    def loss(
        self, tokens: Float[Tensor, "B N D"], maps: Maps, keys: Int[Tensor, " B"]
    ) -> tuple[Tensor, Metrics]:
        """What training makes small. keys: what a decoder draws random numbers from."""

    @abstractmethod
    def predict(self, tokens: Float[Tensor, "B N D"], keys: Int[Tensor, " B"]) -> Maps: ...

    def split(self, stacked: Float[Tensor, "B c S S"]) -> tuple[Tensor, Tensor, Tensor]:
        """Depth [B, S, S] in -1 .. 1, scores of classes [B, C, S, S], colours [B, 3, S, S]."""
        depth, scores, colours = stacked.split([1, self.classes, COLOURS], dim=1)
        return depth[:, 0], scores, colours

    def maps(self, stacked: Float[Tensor, "B c S S"]) -> Maps:
        depth, scores, colours = self.split(stacked)
        metres = (depth.clamp(-1, 1) + 1) * REACH / 2
        return Maps(metres, scores.argmax(1), colours.clamp(-1, 1))


class Regression(Decoder):
    """One convolution reads the maps off the features."""

    def __init__(self, hidden: int, tokens: int, classes: int, size: int, width: int) -> None:
        super().__init__(hidden, tokens, classes, size, width)
        self.leave = nn.Conv2d(width, self.channels, 3, padding=1)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B c S S"]:
        return self.leave(self.features(tokens)).float()

    def loss(
        self, tokens: Float[Tensor, "B N D"], maps: Maps, keys: Int[Tensor, " B"]
    ) -> tuple[Tensor, Metrics]:
        """Absolute error of depth and colours, and cross-entropy of classes, all alike."""
        stacked = self(tokens)
        depth, scores, colours = self.split(stacked)
        parts = (
            functional.l1_loss(depth, scaled(maps.depth)),
            functional.cross_entropy(scores, maps.classes),
            functional.l1_loss(colours, maps.colours),
        )
        return torch.stack(parts).sum(), errors(self.maps(stacked.detach()), maps)

    @torch.no_grad()
    def predict(self, tokens: Float[Tensor, "B N D"], keys: Int[Tensor, " B"]) -> Maps:
        return self.maps(self(tokens))


def _doubled(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GroupNorm(8, width),
        nn.GELU(),
    )


def scaled(depth: Float[Tensor, "B S S"]) -> Float[Tensor, "B S S"]:
    """Metres in 0 .. `REACH` to -1 .. 1."""
    return depth.clamp(0, REACH) * (2 / REACH) - 1


def errors(found: Maps, wanted: Maps) -> Metrics:
    """depth_error in metres, class_accuracy, colour_error of a range of 2; within the reach."""
    return {
        "depth_error": (found.depth - wanted.depth.clamp(0, REACH)).abs().mean(),
        "class_accuracy": (found.classes == wanted.classes).float().mean(),
        "colour_error": (found.colours - wanted.colours).abs().mean(),
    }


DECODERS: Mapping[str, tuple[str, str]] = {
    "regression": ("vlm4vla.aux.omni", "Regression"),
    "diffusion": ("vlm4vla.aux.omni_diffusion", "Diffusion"),
}
"""Module and class of each decoder; a module is imported when its decoder is asked for."""


def decoder_class(name: str) -> type[Decoder]:
    """ValueError with the closest name for an unknown decoder."""
    if name not in DECODERS:
        raise did_you_mean("decoder", name, DECODERS)
    module, kind = DECODERS[name]
    found: type[Decoder] = getattr(importlib.import_module(module), kind)
    return found


class Omni(Answering):
    """A backbone that answers questions, and a decoder that reads its image tokens.

    classes: of a scene's map. size: side of the maps, pixels. weight: of the maps' loss beside
    the answers'.
    """

    def __init__(
        self,
        row: Backbone,
        vlm: Any,
        tokenizer: Tokenizer,
        recipe: Recipe,
        image_px: int = 224,
        *,
        classes: int,
        decoder: str = "regression",
        size: int = 56,
        weight: float = 1.0,
    ) -> None:
        super().__init__(row, vlm, tokenizer, recipe, image_px)
        tokens = self.family.image_tokens(row, self.input_px(image_px))
        self.decoder = decoder_class(decoder)(hidden_width(vlm), tokens, classes, size, WIDTH)
        self.weight = weight

    def own(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return weights

    def loss(  # type: ignore[override]
        self,
        inputs: Inputs,
        depth: Float[Tensor, "M S S"],
        classes: Int[Tensor, "M S S"],
        colours: Float[Tensor, "M 3 S S"],
        keys: Int[Tensor, " M"],
    ) -> tuple[Tensor, Metrics]:
        """Cross-entropy of a `prepare_text` batch's answers, and the loss of M maps.

        The maps are those of the batch's last M pictures, whose labels may be all -100.
        """
        inputs = to_device(inputs, self.device)
        hidden = self.family.hidden(self.vlm, inputs, self.recipe)
        text, found = self.answer_loss(hidden, inputs["labels"])
        seen = self._seen(hidden, inputs)[-len(depth) :]
        drawn, errors = self.decoder.loss(seen, Maps(depth, classes, colours), keys)
        loss = text + self.weight * drawn
        told = {"loss": loss.detach(), "token_accuracy": found["text_accuracy"]}
        return loss, {**told, "map_loss": drawn.detach(), **errors}

    @torch.no_grad()
    def predict(self, inputs: Inputs, keys: Int[Tensor, " B"]) -> Maps:
        """The maps of a `prepare_text` batch's pictures."""
        inputs = to_device(inputs, self.device)
        hidden = self.family.hidden(self.vlm, inputs, self.recipe)
        return self.decoder.predict(self._seen(hidden, inputs), keys)

    @staticmethod
    def _seen(hidden: Float[Tensor, "B T D"], inputs: Inputs) -> Float[Tensor, "B N D"]:
        """Hidden states at the image's slots, of which every sample has as many."""
        return hidden[inputs["image_mask"]].unflatten(0, (len(hidden), -1))
