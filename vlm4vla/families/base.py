"""What a family of vision-language models must answer to become a policy.

Shape suffixes: B batch, T tokens (right-padded), D hidden width, V vocabulary, S image side.
A family is stateless: rows carry the sizes, recipes the reading of the paper.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from vlm4vla.tiny import FAINTNESS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm4vla.backbones import Backbone
    from vlm4vla.recipe import Recipe

Inputs = dict[str, Tensor]
"""Batch-first tensors of a batch.

input_ids, attention_mask (1 for real tokens), image_mask (bool, image slots): [B, T].
image_start [B]: first image slot, the same for all samples; on the CPU, where it is read.
pixel_values [B, ...]. An action batch has query_index [B]; a text batch has last_index [B]
and, with answers, labels [B, T] (-100 outside the answer).
"""


ACTION_IDS = 256
"""Words that stand for actions where a policy answers in tokens."""


@dataclass(frozen=True)
class Template:
    """A prompt: text before the image, text after it, and what closes an answer.

    `after` holds `{text}`, the place of the instruction or question.
    """

    before: str
    after: str
    end: str


class Tower(NamedTuple):
    """A vision tower as a plan counts it.

    layers: path of its layers inside the row's vision module. positions: of one image, special
    tokens included. width: numbers in each.
    """

    layers: str
    positions: int
    width: int


class Family(ABC):
    """One file per family; every method takes the row it is about."""

    image_token: ClassVar[str]
    """Spelling of the token that stands for one image feature."""
    pad_token: ClassVar[str]

    @abstractmethod
    def build(self, row: Backbone) -> PreTrainedModel:
        """A randomly initialised transformers model of the row's full config."""

    @abstractmethod
    def model_class(self, row: Backbone) -> Any:
        """The transformers class, for `from_pretrained`."""

    def load(self, row: Backbone, source: str, dtype: torch.dtype) -> PreTrainedModel:
        """Pretrained weights from a hub id or a local folder."""
        return self.model_class(row).from_pretrained(source, revision=row.revision, dtype=dtype)

    def action_ids_end(self, row: Backbone, count: int = ACTION_IDS) -> int:
        """One past the ids that `count` action tokens take: the last ones, used the least.

        Tiny vocabularies have no spare words, so theirs grow.
        """
        return int(row.config["text_config"]["vocab_size"]) + (count if row.tiny else 0)

    @abstractmethod
    def input_px(self, row: Backbone, image_px: int, recipe: Recipe) -> int:
        """Side of the image the model sees when the run asks for `image_px` (Table 7)."""

    @abstractmethod
    def image_tokens(self, row: Backbone, input_px: int) -> int:
        """Tokens the language model sees of one image of side `input_px`."""

    @abstractmethod
    def towers(self, row: Backbone, input_px: int) -> tuple[Tower, ...]:
        """The vision towers that look at an image of side `input_px`, each on its own."""

    @abstractmethod
    def planes(self, row: Backbone, images: UInt8[Tensor, "B S S 3"]) -> UInt8[Tensor, "B N 3 P"]:
        """Images in the layout the model takes: N patches (or 1 image) of 3 colour planes."""

    @abstractmethod
    def pixels(self, row: Backbone, planes: Float[Tensor, "B N 3 P"], side: int) -> Tensor:
        """Normalised planes in the shape the model takes, batch first."""

    @abstractmethod
    def template(self, style: str, recipe: Recipe) -> Template:
        """The action prompt (A.2.3); style: "native" or "short" (Qwen's two schemes)."""

    @abstractmethod
    def question_template(self, recipe: Recipe) -> Template:
        """The prompt of a question about the image, in the family's own format."""

    @abstractmethod
    def hidden(self, vlm: Any, inputs: Inputs, recipe: Recipe) -> Float[Tensor, "B T D"]:
        """Last hidden states of the language model, after its final norm."""

    @abstractmethod
    def last_feed_forward(self, vlm: Any) -> nn.Module:
        """The feed-forward part of the language model's last layer."""

    @abstractmethod
    def logits(self, vlm: Any, hidden: Float[Tensor, "*b D"]) -> Float[Tensor, "*b V"]:
        """Vocabulary scores of hidden states, through the model's own `lm_head`."""

    def speed_up(self, vlm: nn.Module) -> None:
        """Swap in faster code with the same numbers; nothing by default."""
        return None

    @abstractmethod
    def tiny_init(self, vlm: nn.Module) -> None:
        """Overwrite a tiny row's random weights with spreads at which it learns."""

    def embedding(self, vlm: Any) -> nn.Module:
        return vlm.get_input_embeddings()

    def query_scale(self, vlm: Any) -> float:
        """What the model multiplies word embeddings by inside its embedding module."""
        return float(getattr(self.embedding(vlm), "scalar_embed_scale", 1.0))

    def hidden_with_query(
        self, vlm: Any, inputs: Inputs, query: Float[Tensor, " D"], recipe: Recipe
    ) -> Float[Tensor, "B D"]:
        """The last hidden state at the action query, which takes the place of one word."""
        index, length = inputs["query_index"], inputs["input_ids"].shape[1]
        with ExitStack() as stack:
            scaled = query * self.query_scale(vlm)
            stack.enter_context(query_at(self.embedding(vlm), index, length, scaled))
            if not getattr(vlm, "is_activation_checkpointing", False):
                # Recomputation happens after the hooks are gone, and would not match.
                stack.enter_context(only_at(self.last_feed_forward(vlm), index, length))
            hidden = self.hidden(vlm, inputs, recipe)
        return hidden[torch.arange(len(index), device=index.device), index]

    def lm_logits(self, vlm: Any, inputs: Inputs, recipe: Recipe) -> Float[Tensor, "B T V"]:
        """Next-token scores at every position of a text batch (no query)."""
        return self.logits(vlm, self.hidden(vlm, inputs, recipe))


def tower_of(row: Backbone, layers: str, input_px: int, special: int = 0) -> Tower:
    """The one tower of a row with a `vision_config`. special: its positions beside patches."""
    config = row.config["vision_config"]
    patches = (input_px // config["patch_size"]) ** 2
    return Tower(layers, int(patches + special), int(config["hidden_size"]))


@contextmanager
def query_at(
    embedding: nn.Module, index: Int[Tensor, " B"], length: int, query: Float[Tensor, " D"]
) -> Iterator[None]:
    """Replace the embedding at position `index` of each sample by `query` while open.

    A hook keeps the model's own path over `input_ids`: native M-RoPE, deepstack and masks.
    """
    slot = (torch.arange(length, device=index.device) == index[:, None])[..., None]

    def replace(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
        return torch.where(slot, query.to(out.dtype), out)

    handle = embedding.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def only_at(module: nn.Module, index: Int[Tensor, " B"], length: int) -> Iterator[None]:
    """Run a position-wise module at position `index` alone while open; zeros elsewhere.

    For the last layer, of which a policy reads one position: the other outputs, though not
    those the model would give, have no reader.
    """
    rows = torch.arange(len(index), device=index.device)

    def select(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        return (args[0][rows, index][:, None],)

    def spread(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
        full = out.new_zeros(len(index), length, out.shape[-1])
        full[rows, index] = out[:, 0]
        return full

    handles = module.register_forward_pre_hook(select), module.register_forward_hook(spread)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def computed_once(module: nn.Module) -> Iterator[None]:
    """Run a module at its first call while open; later calls repeat that output."""
    forward, outputs = module.forward, list[Any]()

    def first(*args: Any, **more: Any) -> Any:
        if not outputs:
            outputs.append(forward(*args, **more))
        # Callers write into the output's fields.
        return copy.copy(outputs[0])

    module.forward = first
    try:
        yield
    finally:
        del module.forward


def normal_(parameter: Tensor, std: float) -> None:
    with torch.no_grad():
        parameter.normal_(0.0, std)


def fan_in_(parameter: Tensor) -> None:
    """Normal values that keep a unit-variance input at unit variance."""
    normal_(parameter, parameter[0].numel() ** -0.5)


def patches_(parameter: Tensor) -> None:
    """The same for the faint pixels of tiny models."""
    normal_(parameter, FAINTNESS * parameter[0].numel() ** -0.5)


def tiny_linear_init(vlm: nn.Module) -> None:
    """Every matrix to unit gain: at hidden 64, transformers' 0.02 hardly passes a signal."""
    for module in vlm.modules():
        if isinstance(module, nn.Linear):
            fan_in_(module.weight)
