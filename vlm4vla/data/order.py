"""The training order: which samples make the global batch at step t, whoever computes it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def batch_at(seed: int, step: int, batch: int, samples: int) -> np.ndarray:
    """Indices int64 [batch] of step `step` (from 0): a pure function of its arguments.

    Every epoch visits each sample once in a fresh permutation; a batch may span two epochs.
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
    return np.random.default_rng([seed, epoch]).permutation(samples)


def generator_at(seed: int, step: int, slot: int) -> np.random.Generator:
    """The randomness (augmentation) of one sample: its place in the run, not its worker."""
    return np.random.default_rng([seed, 1, step, slot])


def share(batch: int, rank: int, workers: int) -> slice:
    """The slots of the global batch that `rank` of `workers` computes; sizes differ by ≤ 1."""
    return slice(batch * rank // workers, batch * (rank + 1) // workers)
