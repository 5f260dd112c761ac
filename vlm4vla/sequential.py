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

Shapes: C cells, N states, F fractions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

FRACTIONS = np.geomspace(0.03, 0.8, 8)
"""Shares of the largest bet that cannot ruin; the capital is spread over them evenly."""
NEVER = np.iinfo(np.int64).max

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Race:
    """winner: index of the best cell among those played to the end (of equals the first).

    played: initial states that each cell has used.
    """

    winner: int
    played: tuple[int, ...]

    def saved(self, states: int) -> float:
        """The share of episodes that full evaluation would have played in addition."""
        return 1 - sum(self.played) / (states * len(self.played))


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


def decided_at(outcomes: Float[np.ndarray, "C N"], error: float) -> Int[np.ndarray, "C C"]:
    """[a, b]: states after which a is known to end below b; NEVER where that is not found."""
    cells, states = outcomes.shape
    times = np.full((cells, cells), NEVER)
    limit = bound(error, cells - 1)
    for cell in range(cells):
        over = log_capital(outcomes[cell] - outcomes, states) >= limit
        times[cell] = np.where(over.any(axis=1), over.argmax(axis=1) + 1, NEVER)
    return times


def race(
    outcomes: Float[np.ndarray, "C N"],
    error: float,
    batch: int = 1,
    groups: Sequence[Sequence[int]] | None = None,
) -> Race:
    """Play known outcomes as the test would: what it would have stopped, and when.

    batch: states played between two looks. groups: cells that are evaluated side by side,
    one group after the other (checkpoints as they land); all together for None.
    """
    cells, states = outcomes.shape
    times = decided_at(outcomes, error)
    played = np.zeros(cells, dtype=np.int64)
    for group in groups or [range(cells)]:
        alive = np.zeros(cells, dtype=bool)
        alive[list(group)] = True
        for now in [*range(batch, states, batch), states]:
            played[alive] = now
            alive = _still(alive, _lost(times, played), outcomes[:, :now], played == states)
    totals = np.where(played == states, outcomes.sum(axis=1).round(9), -1)
    return Race(int(totals.argmax()), tuple(played.tolist()))


def _still(
    alive: Bool[np.ndarray, " C"],
    lost: Bool[np.ndarray, " C"],
    seen: Float[np.ndarray, "C T"],
    finished: Bool[np.ndarray, " C"],
) -> Bool[np.ndarray, " C"]:
    """Who plays on. If all beat each other in a circle, which is an error, the leader does."""
    left = alive & ~lost
    if not left.any() and alive.any() and not finished.any():
        left[np.where(alive, seen.sum(axis=1), -1).argmax()] = True
    return left


def _lost(times: Int[np.ndarray, "C C"], played: Int[np.ndarray, " C"]) -> Bool[np.ndarray, " C"]:
    """Cells that some other beat within the states both have played."""
    return np.any(times <= np.minimum(played[:, None], played[None]), axis=1)


def full_winner(outcomes: Float[np.ndarray, "C N"]) -> int:
    """The best cell of a full evaluation; of equals the first."""
    totals = outcomes.sum(axis=1).round(9)
    return int(np.argmax(totals))
