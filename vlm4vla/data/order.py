"""The training order: which samples make the global batch at step t, whoever computes it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

WINDOW = 2**18
"""Samples that are shuffled at once: five times the official code's shuffle buffer."""
BLOCK = 2**12
"""Neighbours that a larger dataset moves together: a window then needs few of its shards."""


def batch_at(seed: int, step: int, batch: int, samples: int) -> np.ndarray:
    """Indices int64 [batch] of step `step` (from 0): a pure function of its arguments.

    Every epoch visits each sample once in a fresh order; a batch may span two epochs. The order
    of more than `WINDOW` samples is one of blocks, shuffled a window at a time, so that a disk
    that cannot hold all shards needs each of them about once an epoch.
    """
    return draws(seed, step * batch, (step + 1) * batch, samples)


def draws(seed: int, first: int, last: int, samples: int) -> np.ndarray:
    """Indices int64 [last - first] of draws [first, last) from the same endless epochs."""
    if samples < 1:
        raise ValueError("the dataset has no samples")
    positions = np.arange(first, last)
    epochs = positions // samples
    out = np.empty(last - first, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = _permutation(seed, int(epoch), samples)[positions[here] % samples]
    return out


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, samples: int) -> np.ndarray:
    rng = np.random.default_rng([seed, epoch])
    if samples <= WINDOW:
        return rng.permutation(samples)
    blocks = rng.permutation(-(-samples // BLOCK))
    order = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    order = order[order < samples]
    for first in range(0, samples, WINDOW):
        rng.shuffle(order[first : first + WINDOW])
    return order


def generator_at(seed: int, step: int, slot: int) -> np.random.Generator:
    """The randomness (augmentation) of one sample: its place in the run, not its worker."""
    return np.random.default_rng([seed, 1, step, slot])


def share(batch: int, rank: int, workers: int) -> slice:
    """The slots of the global batch that `rank` of `workers` computes; sizes differ by ≤ 1."""
    return slice(batch * rank // workers, batch * (rank + 1) // workers)
