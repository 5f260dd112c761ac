"""Known outcomes, played as the sequential test would have: for its benchmark and its tests.

Shapes: C cells, N states, T of them played.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from vlm4vla.sequential import bound, log_capital

NEVER = np.iinfo(np.int64).max


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
