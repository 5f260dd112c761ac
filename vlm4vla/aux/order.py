"""The order of a stage's questions: a pure function of (seed, step), whoever computes it.

Rows of the table take turns by their shares; within a row every pass visits each question once.
Questions of like length share a batch, so that little of it is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from vlm4vla.data.order import draws

PERIOD = 1000
"""Samples in which the shares of a mixture are met exactly, to a thousandth."""
WINDOW = 16
"""Batches among which questions are sorted by length."""
ALIKE = 64
"""Characters, about 16 tokens, by which lengths may differ and count as equal: sorting more
finely would save little padding, and would part a mixture's rows."""


class Order:
    """Which questions make the global batch of a step.

    numbers: a row's questions, by its name. shares: in any unit. size: a question's length.
    """

    def __init__(
        self,
        numbers: Mapping[str, np.ndarray],
        shares: Mapping[str, float],
        size: Callable[[int], int],
        batch: int,
        seed: int,
    ) -> None:
        self.numbers = [np.asarray(numbers[name]) for name in shares]
        self.size, self.batch, self.seed = size, batch, seed
        turns = _quotas(np.array(list(shares.values())))
        self.turns = np.random.default_rng([seed, 3]).permutation(turns)
        self._window = lru_cache(maxsize=2)(self._sorted)

    def at(self, step: int) -> np.ndarray:
        """Numbers int64 [batch] of step `step` (from 0), questions of like length."""
        window, place = divmod(step, WINDOW)
        return self._window(window)[place]

    def _sorted(self, window: int) -> np.ndarray:
        """The batches [WINDOW, batch] of one window, in random order."""
        first = window * WINDOW * self.batch
        found = self._samples(first, first + WINDOW * self.batch)
        lengths = np.array([self.size(number) // ALIKE for number in found])
        batches = found[np.argsort(lengths, kind="stable")].reshape(WINDOW, self.batch)
        return np.random.default_rng([self.seed, 4, window]).permutation(batches)

    def _samples(self, first: int, last: int) -> np.ndarray:
        """Samples [first, last) of the endless mixture."""
        whose = self.turns[np.arange(first, last) % PERIOD]
        out = np.empty(last - first, np.int64)
        for row, numbers in enumerate(self.numbers):
            mine = np.flatnonzero(whose == row)
            begin = self._seen(row, first)
            places = draws(self.seed + row, begin, begin + len(mine), len(numbers))
            out[mine] = numbers[places]
        return out

    def _seen(self, row: int, count: int) -> int:
        """How many of the first `count` samples are the row's."""
        whole, rest = divmod(count, PERIOD)
        is_row = self.turns == row
        return int(whole * is_row.sum() + is_row[:rest].sum())


def _quotas(shares: np.ndarray) -> np.ndarray:
    """`PERIOD` row numbers, as many of each as its share; every row with a share has one."""
    if not len(shares) or (shares <= 0).any():
        raise ValueError("the shares of a mixture must be positive, one for each row of the table")
    edges = np.round(np.cumsum(shares) / shares.sum() * PERIOD).astype(int)
    counts = np.diff(edges, prepend=0)
    if (counts == 0).any():
        raise ValueError(f"a share under 1/{PERIOD} of its mixture would never be drawn")
    return np.repeat(np.arange(len(shares)), counts)
