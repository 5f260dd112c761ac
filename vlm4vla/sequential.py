"""Stop evaluating a checkpoint × horizon that can no longer be the best, at a stated error.

All cells meet the same initial states in one random order. For cells a and b, "a ends no
lower than b" says that their differences over all states add up to zero or more. Against it
a gambler bets on each next difference, knowing those before: sampling without replacement
makes the fair price -(sum so far) / (states left), so the capital is a supermartingale as
long as the statement holds (Waudby-Smith & Ramdas 2020), and by Ville's inequality reaches
1 / e with probability e at most, whenever one looks. Each of the other cells gets an equal
share of the error, so that the cell which full evaluation would call best is stopped with
probability `error` at most, whatever the outcomes and however unequal the cells; the
probability is over the order of states. What cannot be caught up any more is stopped anyway.

Only states of the selection are given here: those for confirmation are never spent.

Shapes: T states played so far.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

FRACTIONS = np.geomspace(0.03, 0.8, 8)
"""Shares of the largest bet that cannot ruin; the capital is spread over them evenly."""

Name = TypeVar("Name", bound=Hashable)


def order(tasks: Sequence[str], states: int, seed: int = 0) -> list[tuple[str, int]]:
    """Every (task, initial state) of the selection in the random order all cells share."""
    every = [(task, state) for task in tasks for state in range(states)]
    return [every[i] for i in np.random.default_rng(seed).permutation(len(every))]


def hopeless(
    outcomes: Mapping[Name, Sequence[float]], states: int, error: float, cells: int | None = None
) -> set[Name]:
    """Cells to stop. outcomes: of each cell so far, 0 to 1, in the shared order of states.

    states: how many a full evaluation has. cells: how many will ever compete, when some have
    not begun. ValueError for an error outside (0, 1), too many outcomes or too few cells.
    """
    names, rivals = list(outcomes), (len(outcomes) if cells is None else cells) - 1
    if rivals + 1 < len(names) or any(len(played) > states for played in outcomes.values()):
        raise ValueError(f"more outcomes than {rivals + 1} cells of {states} states can have")
    found = {
        name
        for name in names
        for other in names
        if other != name and _beaten(outcomes[name], outcomes[other], states, error, rivals)
    }
    return found - {_leader(outcomes)} if len(found) == len(names) == rivals + 1 else found


def _leader(outcomes: Mapping[Name, Sequence[float]]) -> Name:
    """Kept when all have been beaten in a circle, which is one of the errors allowed for."""
    return max(outcomes, key=lambda name: (len(outcomes[name]), sum(outcomes[name])))


def _beaten(
    mine: Sequence[float], other: Sequence[float], states: int, error: float, rivals: int
) -> bool:
    """At some moment of the states that both have played."""
    shared = min(len(mine), len(other))
    differences = np.subtract(mine[:shared], other[:shared])
    return bool(np.any(log_capital(differences, states) >= bound(error, rivals)))


def bound(error: float, rivals: int) -> float:
    """Log capital at which one comparison out of `rivals` is decided."""
    if not 0 < error < 1:
        raise ValueError(f"an error rate lies between 0 and 1, not at {error}")
    return math.log(max(1, rivals) / error)


def log_capital(
    differences: Float[np.ndarray, "*pairs T"], states: int
) -> Float[np.ndarray, "*pairs T"]:
    """Log of the gambler's capital after each difference (-1 to 1); infinite when certain."""
    sums = np.cumsum(differences, axis=-1)
    before = sums - differences
    left = states - np.arange(differences.shape[-1])
    price = -before / left
    room = np.maximum(1 - price, 1e-12)  # a larger bet than 1 / room could ruin
    gain = (price - differences) / room
    wealth = np.cumsum(np.log1p(gain[..., None] * FRACTIONS), axis=-2)
    top = wealth.max(axis=-1)
    mixed = top + np.log(np.mean(np.exp(wealth - top[..., None]), axis=-1))
    certain = sums + left - 1 < -1e-9
    return np.where(np.maximum.accumulate(certain, axis=-1), np.inf, mixed)
