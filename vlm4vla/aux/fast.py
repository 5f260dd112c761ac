"""FAST action tokens (arXiv 2501.09747): chunks of actions as few words, for Table 4.

A chunk is brought to [-1, 1], each dimension goes through a discrete cosine transform, the
coefficients are scaled and rounded, and the integers, lowest frequencies of all dimensions
first, are packed by byte-pair encoding. The published tokenizer runs code from a hub; this one
is a fitted file. Its alphabet holds every coefficient that a chunk can have, so the packing is
exact for any chunk and only the rounding loses anything.

Shape suffixes: N chunks, k actions of a chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import fft
from tokenizers import Tokenizer, models, trainers

from envs.api import ACTION_DIM
from vlm4vla.data.normalise import Normaliser

SCALE = 10.0
"""Levels per unit of a coefficient, as published; tests/bench/fast.json has what it loses."""
VOCABULARY = 1024
"""Words of the published tokenizer."""
DESCRIPTION, PACKING = "fast.json", "bpe.json"
_FIRST = 0x4E00
"""Code point of the lowest level: from here on 20,000 characters are letters, never blanks."""


@dataclass(frozen=True)
class Fast:
    """A fitted tokenizer of chunks of `chunk` actions in raw units.

    scale: levels per unit. packing: the byte-pair encoding; its tokens are 0 .. `size` - 1.
    """

    chunk: int
    scale: float
    normaliser: Normaliser
    packing: Tokenizer

    @classmethod
    def fit(
        cls,
        chunks: Float[np.ndarray, "N k 7"],
        normaliser: Normaliser,
        scale: float = SCALE,
        vocabulary: int = VOCABULARY,
    ) -> Fast:
        """Learn which runs of coefficients are frequent. The gripper is at -1 / +1.

        `vocabulary` bounds the tokens; few or uniform chunks give fewer. ValueError if it
        cannot hold one token per level.
        """
        length = _length(chunks)
        levels = 2 * _highest(length, scale) + 1
        if vocabulary < levels:
            raise ValueError(
                f"a FAST vocabulary of {vocabulary} cannot hold the {levels} levels of chunks of "
                f"{length} at scale {scale:g}: ask for more words, or a coarser scale"
            )
        empty = cls(length, scale, normaliser, Tokenizer(models.BPE()))
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=[chr(_FIRST + level) for level in range(levels)],
        )
        empty.packing.train_from_iterator(empty._spell(chunks), trainer)
        return empty

    @property
    def size(self) -> int:
        """Tokens in use."""
        return int(self.packing.get_vocab_size())

    def encode(self, chunks: Float[np.ndarray, "N k 7"]) -> list[list[int]]:
        """Tokens of raw chunks. Values outside the normaliser's range count as its ends."""
        return [list(found.ids) for found in self.packing.encode_batch(self._spell(chunks))]

    def decode(self, tokens: Iterable[Sequence[int]]) -> Float[np.ndarray, "N k 7"]:
        """Raw chunks, float32; ValueError for tokens that are no whole chunk."""
        values = fft.idct(self.unpack(tokens) / self.scale, axis=1, norm="ortho")
        return self.normaliser.inverse(np.clip(values, -1, 1).astype(np.float32))

    def unpack(self, tokens: Iterable[Sequence[int]]) -> Int[np.ndarray, "N k 7"]:
        """The `coefficients` that tokens hold, exactly; ValueError as in `decode`."""
        return np.stack([self._unpack(row) for row in tokens])

    def coefficients(self, chunks: Float[np.ndarray, "N k 7"]) -> Int[np.ndarray, "N k 7"]:
        """Rounded coefficients, axis 1 from the lowest frequency up: what the tokens hold."""
        length = _length(chunks)
        if length != self.chunk:
            raise ValueError(
                f"this FAST tokenizer was fitted on chunks of {self.chunk} actions, not "
                f"{length}: fit one for the length in use"
            )
        values = np.clip(self.normaliser.forward(chunks).astype(np.float64), -1, 1)
        return np.rint(fft.dct(values, axis=1, norm="ortho") * self.scale).astype(np.int64)

    def save(self, folder: Path) -> None:
        """Write `fast.json` and `bpe.json` (the tokenizers library's format) into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.packing.save(str(folder / PACKING))
        described: dict[str, Any] = {"chunk": self.chunk, "scale": self.scale}
        described["normaliser"] = self.normaliser.to_json()
        (folder / DESCRIPTION).write_text(json.dumps(described, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Fast:
        """What `save` wrote; FileNotFoundError names a missing file, ValueError a damaged one."""
        for name in (DESCRIPTION, PACKING):
            if not (folder / name).exists():
                raise FileNotFoundError(
                    f"{folder / name} is missing: {folder} holds no FAST tokenizer; fit one on "
                    "the demonstrations and save it there"
                )
        try:
            packing = Tokenizer.from_file(str(folder / PACKING))
        except Exception as error:  # the library raises no other kind
            raise ValueError(f"{folder / PACKING} is damaged: {error}") from None
        return cls(*_described((folder / DESCRIPTION).read_bytes()), packing)

    def _spell(self, chunks: np.ndarray) -> list[str]:
        """One character per coefficient, lowest frequencies of all dimensions first."""
        lowest = _FIRST + _highest(self.chunk, self.scale)
        rows = self.coefficients(chunks).reshape(len(chunks), -1) + lowest
        return ["".join(map(chr, row)) for row in rows.tolist()]

    def _unpack(self, tokens: Sequence[int]) -> Int[np.ndarray, "k 7"]:
        known = range(self.size)
        strange = [token for token in tokens if not hasattr(token, "__index__")]
        strange += [token for token in tokens if not strange and token not in known]
        if strange:
            raise ValueError(
                f"token {strange[0]} is none of this FAST tokenizer's {self.size}: it belongs "
                "to another tokenizer"
            )
        text = "".join(self.packing.id_to_token(token) or "" for token in tokens)
        if len(text) != self.chunk * ACTION_DIM:
            raise ValueError(
                f"{len(tokens)} tokens hold {len(text)} coefficients, but a chunk of "
                f"{self.chunk} actions has {self.chunk * ACTION_DIM}: they were cut short, or "
                "a model made them up"
            )
        lowest = _FIRST + _highest(self.chunk, self.scale)
        return (np.array([ord(letter) for letter in text]) - lowest).reshape(-1, ACTION_DIM)


def _described(data: bytes) -> tuple[int, float, Normaliser]:
    try:
        told = dict(json.loads(data))
        chunk, scale = told["chunk"], told["scale"]
        if type(chunk) is not int or type(scale) not in (int, float):
            raise ValueError(f"chunk {chunk!r:.99}, scale {scale!r:.99}")
        if not (chunk > 0 and 0 < scale < np.inf):
            raise ValueError(f"chunk {chunk}, scale {scale}")
        return chunk, float(scale), Normaliser.from_json(told["normaliser"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ValueError(f"not a {DESCRIPTION} ({type(error).__name__}: {error})") from error


def _length(chunks: np.ndarray) -> int:
    if chunks.ndim != 3 or chunks.shape[2] != ACTION_DIM or 0 in chunks.shape:
        raise ValueError(
            f"chunks of actions have shape {list(chunks.shape)}: pass [N >= 1, k >= 1, "
            f"{ACTION_DIM}]"
        )
    if not np.isfinite(chunks).all():
        raise ValueError("chunks of actions hold values that are not finite: leave them out")
    return int(chunks.shape[1])


def _highest(length: int, scale: float) -> int:
    """The largest level of any chunk in [-1, 1]: that of the lowest frequency, if constant."""
    return int(np.ceil(scale * np.sqrt(length)))
