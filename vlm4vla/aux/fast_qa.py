"""Demonstrations as questions whose answers are FAST tokens (4.4, Table 4).

A backbone learns them like any other answer, one word after the other; what it learns of
actions stays in its weights when it becomes a policy with a head of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from envs.api import Demonstration
from vlm4vla.aux.fast import Fast
from vlm4vla.aux.samples import Sample
from vlm4vla.families import family_of
from vlm4vla.recipe import PAPER

if TYPE_CHECKING:
    from vlm4vla.backbones import Backbone
    from vlm4vla.tokenizers import Tokenizer

QUESTION = "What action should the robotic arm take to {instruction}"
"""The words in which policies are asked for actions, too (A.2.3)."""


@dataclass(frozen=True)
class ActionWords:
    """A FAST tokenizer in a model's vocabulary: token n is written as word `ids[n]`."""

    fast: Fast
    ids: tuple[int, ...]

    @classmethod
    def of(cls, fast: Fast, row: Backbone, tokenizer: Tokenizer) -> ActionWords:
        """The row's least used words: its last ones, without any that prompts consist of.

        A function of the backbone and the tokenizer's size alone, so nothing has to be stored.
        Tiny vocabularies have to grow by `fast.size` words to hold them.
        """
        reserved = prompt_ids(row, tokenizer)
        end = family_of(row).action_ids_end(row, fast.size)
        free = [i for i in range(end - 1, -1, -1) if i not in reserved][: fast.size]
        return cls(fast, tuple(free))

    def answers(self, chunks: Float[np.ndarray, "N k 7"]) -> list[tuple[int, ...]]:
        """Word ids of raw chunks, without an end token."""
        return [tuple(self.ids[token] for token in row) for row in self.fast.encode(chunks)]

    def actions(self, answers: Iterable[Sequence[int]]) -> Float[np.ndarray, "N k 7"]:
        """Raw chunks of answers; ValueError for a word that stands for no action."""
        tokens = {word: token for token, word in enumerate(self.ids)}
        return self.fast.decode([[_token(tokens, word) for word in row] for row in answers])


def prompt_ids(row: Backbone, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that every question to a model of this row consists of, its words left out."""
    family = family_of(row)
    template = family.question_template(PAPER)
    text = template.before + family.image_token + template.after.format(text="") + template.end
    return frozenset((*tokenizer.encode(text), tokenizer.token_id(family.pad_token)))


def _token(tokens: dict[int, int], word: int) -> int:
    if word not in tokens:
        raise ValueError(
            f"word {word} stands for no action: the model answered something else, or its "
            "answer was read with another backbone's words"
        )
    return tokens[word]


def whole_chunks(actions: Float[np.ndarray, "T 7"], length: int) -> Float[np.ndarray, "N k 7"]:
    """Every run of `length` actions inside an episode, [T - length + 1, length, 7]."""
    starts = np.arange(max(len(actions) - length + 1, 0))
    return actions[starts[:, None] + np.arange(length)]


def samples(
    demonstrations: Iterable[Demonstration], words: ActionWords, every: int = 1
) -> Iterator[Sample]:
    """A question per frame that a whole chunk follows; `every` takes each n-th such frame."""
    for number, demo in enumerate(demonstrations):
        chunks = whole_chunks(demo.actions, words.fast.chunk)[::every]
        question = QUESTION.format(instruction=demo.instruction)
        scene = f"demonstration {number}"
        for place, answer in enumerate(words.answers(chunks) if len(chunks) else ()):
            frame = place * every
            where = f"{scene}: frame {frame}"
            image = demo.images[frame]
            yield Sample(image, question, answer, "action", where=where, scene=scene)
