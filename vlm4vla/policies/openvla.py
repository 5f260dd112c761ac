"""OpenVLA's policy: actions as words, one token per dimension, decoded one after the other.

The arithmetic is the released code's (arXiv 2406.09246; `prismatic/vla/action_tokenizer.py`):
256 edges from -1 to 1, the least-used ids of the vocabulary in falling order, bin centres
when decoding. The same head works on every backbone. Shape suffixes: B batch, T tokens,
D hidden width, A action tokens (7 for each of the k actions of a chunk).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from envs.api import ACTION_DIM
from vlm4vla.families import Inputs
from vlm4vla.families.base import ACTION_IDS, computed_once
from vlm4vla.policies.base import VlmPolicy
from vlm4vla.policies.head import POSE
from vlm4vla.prompts import to_device

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe
    from vlm4vla.tokenizers import Tokenizer

BINS = ACTION_IDS
TINY_BLUR, EXACT = 0.1, 0.1
"""Tiny models learn from targets spread over neighbouring bins, by this standard deviation in
normalised units. From single bins they learn broad distributions in the steps that they have, of
which the best-scored token is often a movement at its limit, far from the mean. The value's own
bin keeps the share EXACT, so that what never varies is decoded as it was learnt."""


class Bins:
    """Values in [-1, 1] to the ids just below `end` and back.

    Between 256 edges lie 255 bins; the last id stands for exactly 1 and decodes like the one
    before it. -1 has the largest id, `end - 1`.
    """

    def __init__(self, end: int) -> None:
        self.end = end
        self.edges = torch.linspace(-1, 1, BINS, dtype=torch.float64)
        self.centres = (self.edges[:-1] + self.edges[1:]) / 2

    @property
    def ids(self) -> range:
        return range(self.end - BINS, self.end)

    def encode(self, values: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
        """Ids of values, which are clipped to [-1, 1]."""
        values = values.double().clamp(-1, 1).contiguous()
        return self.end - torch.bucketize(values, self.edges.to(values.device), right=True)

    def blurred(self, values: Float[Tensor, " n"], spread: float) -> Float[Tensor, "n ids"]:
        """Probabilities of `ids` for each value: normal around it, and EXACT for its own bin."""
        centres = self.decode(torch.arange(self.ids.start, self.ids.stop, device=values.device))
        distances = (values.float().clamp(-1, 1)[:, None] - centres) / spread
        around = (1 - EXACT) * torch.softmax(-distances.square() / 2, dim=-1)
        own = (self.encode(values) - self.ids.start)[:, None]
        return around.scatter_add_(1, own, torch.full_like(around[:, :1], EXACT))

    def decode(self, ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Centres of the ids' bins, float32; an id outside the range counts as its nearest."""
        places = (self.end - ids - 1).clamp(0, len(self.centres) - 1)
        return self.centres.to(ids.device)[places].float()


def blur_of(row: Backbone) -> float:
    """Standard deviation of the targets; 0, one bin alone, is OpenVLA's own."""
    return TINY_BLUR if row.tiny else 0.0


class OpenVlaPolicy(VlmPolicy):
    """A vision-language model that answers with action tokens.

    Decoding looks at the image once, and runs the whole prompt for each token: a cache of
    keys would save most of that, and cost a path of its own in every family.
    """

    uses_lm_head = True

    def __init__(
        self, row: Backbone, vlm: Any, tokenizer: Tokenizer, recipe: Recipe, chunk: int, **more: Any
    ) -> None:
        super().__init__(row, vlm, tokenizer, recipe, chunk, **more)
        self.bins = Bins(self.family.action_ids_end(row))
        self.blur = blur_of(row)
        vocabulary = vlm.get_input_embeddings().weight.shape[0]
        if self.bins.end > vocabulary:
            grow_vocabulary(vlm, self.bins.ids)

    @property
    def slots(self) -> int:
        """Every action token but the last, which nothing follows."""
        return self.chunk * ACTION_DIM - 1

    def logits(
        self, inputs: Inputs, tokens: Int[Tensor, "B A"], first: int, last: int
    ) -> Float[Tensor, "B n V"]:
        """Scores of action tokens [first, last) where those before them are `tokens`."""
        start = inputs["query_index"][:, None]
        ids = inputs["input_ids"].clone()
        places = start + torch.arange(self.slots, device=ids.device)
        ids.scatter_(1, places, tokens[:, : self.slots])
        hidden = self.family.hidden(self.vlm, {**inputs, "input_ids": ids}, self.recipe)
        asked = start - 1 + torch.arange(first, last, device=ids.device)
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        return self.family.logits(self.vlm, hidden[rows, asked])

    def loss(
        self, inputs: Inputs, actions: Float[Tensor, "B k 7"], mask: Float[Tensor, "B k"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy over the vocabulary, averaged over the tokens of unpadded steps."""
        inputs, actions = to_device(inputs, self.device), actions.to(self.device)
        tokens = self.bins.encode(actions).flatten(1)
        counts = mask.to(self.device).repeat_interleave(ACTION_DIM, dim=1).bool()
        logits = self.logits(inputs, tokens, 0, tokens.shape[1])[counts].float()
        wanted = tokens[counts]
        loss = self._entropy(logits, wanted, actions.flatten(1)[counts])
        # A fixed label is a word of its own, so hits are counted within the action ids.
        found = self._best(logits.detach())
        error = (self.bins.decode(found) - self.bins.decode(wanted)).abs().mean()
        hits = (found == wanted).float().mean()
        metrics = {"loss": loss.detach(), "token_accuracy": hits, "action_error": error}
        return loss, metrics

    def _entropy(
        self, logits: Float[Tensor, "n V"], wanted: Int[Tensor, " n"], values: Float[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        if not self.blur:
            return functional.cross_entropy(logits, wanted)
        ids = self.bins.ids
        scores = logits.log_softmax(-1)[:, ids.start : ids.stop]
        return -(self.bins.blurred(values, self.blur) * scores).sum(-1).mean()

    def chunks(self, inputs: Inputs) -> Float[Tensor, "B k 7"]:
        values = self.bins.decode(self.tokens(inputs)).view(-1, self.chunk, ACTION_DIM)
        closing = torch.where(values[..., POSE:] > 0, 1.0, -1.0)
        return torch.cat([values[..., :POSE], closing], dim=-1)

    def tokens(self, inputs: Inputs) -> Int[Tensor, "B A"]:
        """Greedy decoding, a token at a time."""
        inputs = to_device(inputs, self.device)
        ids = inputs["input_ids"]
        tokens = ids.new_full((len(ids), self.chunk * ACTION_DIM), self.bins.ids.start)
        with computed_once(self.vlm.get_submodule(self.row.modules.vision)):
            for place in range(tokens.shape[1]):
                scores = self.logits(inputs, tokens, place, place + 1)[:, 0]
                tokens[:, place] = self._best(scores)
        return tokens

    def _best(self, logits: Float[Tensor, "*b V"]) -> Int[Tensor, "*b"]:
        """The best-scored action token; other words are no answer."""
        ids = self.bins.ids
        return logits[..., ids.start : ids.stop].argmax(-1) + ids.start


@torch.no_grad()
def grow_vocabulary(vlm: Any, ids: range) -> None:
    """Add word embeddings (and scores) for `ids` to a model without spare ones.

    Tiny models alone need it. Neighbouring bins start alike, on a smooth curve, at the spread
    of the other words: 256 unrelated words would take them longer to learn than the task.
    """
    old = vlm.get_input_embeddings().weight
    spread, width = float(old.std()), old.shape[1]
    vlm.resize_token_embeddings(ids.stop, mean_resizing=False)
    curve = smooth_curve(len(ids), width, old) * spread
    for module in (vlm.get_input_embeddings(), vlm.get_output_embeddings()):
        weight: Tensor = module.weight
        weight[ids.start : ids.stop] = curve.to(weight)


def smooth_curve(points: int, width: int, like: Tensor) -> Float[Tensor, "points width"]:
    """Random smooth functions of the bin, one per column, each of unit spread."""
    x = torch.linspace(-1, 1, points, device=like.device)
    waves = torch.arange(1, 13, device=like.device)
    basis = torch.cat([torch.cos(torch.pi * waves * (x[:, None] + 1) / 2), x[:, None]], dim=1)
    weights = torch.randn(basis.shape[1], width, device=like.device)
    weights = weights / torch.cat([waves.float(), waves.new_ones(1).float()])[:, None]
    curve = basis @ weights
    return (curve - curve.mean(0)) / curve.std(0)
