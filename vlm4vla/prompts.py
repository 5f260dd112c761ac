"""Images and sentences to a padded batch of token ids (paper A.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from vlm4vla.families.base import Family, Inputs, Template
from vlm4vla.tokenizers import Tokenizer

Answer = str | Sequence[int]
"""Text, or ids of the vocabulary."""
IGNORED = -100
"""Label of a token that no loss is computed on."""


class Prompter:
    """Builds right-padded batches for one row, recipe and template.

    length: the model's context in tokens. image_tokens: features of one image.
    """

    def __init__(
        self,
        family: Family,
        tokenizer: Tokenizer,
        template: Template,
        image_tokens: int,
        context: int,
    ) -> None:
        self.template = template
        self.context = context
        self._tokenizer = tokenizer
        image = [tokenizer.token_id(family.image_token)] * image_tokens
        self._head = [*tokenizer.encode(template.before), *image]
        self._image = slice(len(self._head) - image_tokens, len(self._head))
        self._pad = tokenizer.token_id(family.pad_token)
        self._end = tokenizer.encode(template.end)
        # A run has few distinct sentences; each is tokenised once.
        self.tokens = lru_cache(maxsize=65_536)(self._tokens)

    def token_id(self, token: str) -> int:
        """Id of one token; ValueError if the vocabulary has no such token."""
        return self._tokenizer.token_id(token)

    def _tokens(self, text: str) -> tuple[int, ...]:
        """Ids of the whole prompt for one sentence, without query or answer."""
        after = self._tokenizer.encode(self.template.after.format(text=text))
        return (*self._head, *after)

    def actions(
        self, texts: Sequence[str], length: int | None, after_padding: bool, slots: int = 1
    ) -> Inputs:
        """A batch whose slots (the query) follow each prompt's last real token or the padding.

        `query_index` [B] is the first slot.
        """
        rows = [self.tokens(text) for text in texts]
        spare = [self._pad] * slots
        ids, lengths = self._pad_rows([(*row, *spare) for row in rows], texts, length)
        index = np.full(len(rows), ids.shape[1]) if after_padding else lengths
        mask = self._mask(ids, lengths - slots)
        places = (index - slots)[:, None] + np.arange(slots)
        np.put_along_axis(mask, places, 1, axis=1)
        return {**self._batch(ids, mask), "query_index": torch.from_numpy(index - slots)}

    def questions(
        self, texts: Sequence[str], answers: Sequence[Answer] | None, length: int | None
    ) -> Inputs:
        """A batch of questions, with labels on each answer and its end where given."""
        prompts = [self.tokens(text) for text in texts]
        tails = self._tails(texts, answers)
        ids, lengths = self._pad_rows(
            [(*p, *t) for p, t in zip(prompts, tails, strict=True)], texts, length
        )
        batch = self._batch(ids, self._mask(ids, lengths))
        starts = np.array([len(prompt) for prompt in prompts])
        batch["last_index"] = torch.from_numpy(starts - 1)
        if answers is not None:
            inside = self._mask(ids, lengths) - self._mask(ids, starts)
            batch["labels"] = torch.from_numpy(np.where(inside == 1, ids, IGNORED))
        return batch

    def _tails(
        self, texts: Sequence[str], answers: Sequence[Answer] | None
    ) -> list[tuple[int, ...]]:
        if answers is None:
            return [()] * len(texts)
        if len(answers) != len(texts):
            raise ValueError(f"{len(texts)} questions but {len(answers)} answers")
        return [self.tail(answer) for answer in answers]

    def tail(self, answer: Answer) -> tuple[int, ...]:
        """Ids of an answer with what closes it."""
        ids = self._tokenizer.encode(answer) if isinstance(answer, str) else answer
        return (*ids, *self._end)

    def _pad_rows(
        self, rows: list[tuple[int, ...]], texts: Sequence[str], length: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Right-padded ids [B, T] and the real lengths [B]."""
        lengths = np.array([len(row) for row in rows])
        longest = int(lengths.max())
        total = longest if length is None else length
        if longest > min(total, self.context):
            self._too_long(texts[int(lengths.argmax())], longest, min(total, self.context))
        ids = np.full((len(rows), total), self._pad, dtype=np.int64)
        for row, out in zip(rows, ids, strict=True):
            out[: len(row)] = row
        return ids, lengths

    def _too_long(self, text: str, needed: int, limit: int) -> None:
        raise ValueError(
            f"the prompt of {text[:80]!r} needs {needed} tokens with its image and query, more "
            f"than the {limit} allowed: shorten the instruction, or raise `length` if it was given."
        )

    def _batch(self, ids: np.ndarray, mask: np.ndarray) -> Inputs:
        image = np.zeros(ids.shape, dtype=bool)
        image[:, self._image] = True
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "image_mask": torch.from_numpy(image),
            "image_start": torch.full((len(ids),), self._image.start),
        }

    @staticmethod
    def _mask(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)


READ_ON_HOST = ("image_start",)
"""Tensors that Python reads; on a GPU each read would wait for the device."""


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The batch on `device`, but for what Python itself reads."""
    return {
        name: tensor if name in READ_ON_HOST else tensor.to(device, non_blocking=True)
        for name, tensor in inputs.items()
    }
