"""Statistics of success rates: pure functions, rows and numbers in, numbers out.

Intervals are 95% unless said otherwise. Random draws come from a seed, so a report built
twice prints the same digits. Tables are the ledger's (pyarrow, one row per episode).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pyarrow as pa

Z95 = 1.959963984540054
DRAWS = 10_000
"""Bootstrap resamples: the ends of a 95% interval repeat to about a fiftieth of its width."""


class Estimate(NamedTuple):
    """A number and the interval around it, in the same unit."""

    value: float
    low: float
    high: float


def wilson(successes: float, trials: int, states: int | None = None) -> tuple[float, float]:
    """The Wilson score interval of a success rate (Wilson 1927), 95%.

    states: initial states of which the trials are repeats, if not one each. Repeats say how a
    policy varies, not how hard other states are, so the interval is as wide as theirs.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials is not a rate")
    number = trials if states is None else states
    rate, share = successes / trials, Z95 * Z95 / number
    centre = (rate + share / 2) / (1 + share)
    half = Z95 * math.sqrt(rate * (1 - rate) / number + share / number / 4) / (1 + share)
    return max(0.0, centre - half), min(1.0, centre + half)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


# Two policies on the same episodes


@dataclass(frozen=True)
class Paired:
    """Policy A beside policy B on the episodes both ran.

    difference: rate of A minus rate of B. p: exact two-sided McNemar. unpaired: episodes
    that only one of them ran, left out of everything.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    difference: Estimate
    p: float
    unpaired: int = 0


def compare(a: pa.Table, b: pa.Table, seed: int = 0) -> Paired:
    """Two cells' rows, paired by task, initial state, seed and instruction."""
    won_a, won_b = _outcomes(a), _outcomes(b)
    shared = sorted(won_a.keys() & won_b.keys())
    if not shared:
        raise ValueError("the two cells share no episode, so they cannot be compared in pairs")
    pairs = [(won_a[key], won_b[key]) for key in shared]
    both, only_a, only_b = (pairs.count(kind) for kind in ((1, 1), (1, 0), (0, 1)))
    return Paired(
        both,
        only_a,
        only_b,
        len(pairs) - both - only_a - only_b,
        paired_bootstrap(only_a, only_b, len(pairs), seed),
        mcnemar(only_a, only_b),
        len(won_a) + len(won_b) - 2 * len(shared),
    )


def _outcomes(rows: pa.Table) -> dict[tuple[object, ...], int]:
    names = ("task", "initial_state", "seed", "instruction")
    keys = list(zip(*(rows[name].to_pylist() for name in names), strict=True))
    if len(set(keys)) != len(keys):
        raise ValueError("these rows hold an episode twice: compare one cell with one cell")
    return dict(zip(keys, map(int, rows["success"].to_pylist()), strict=True))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p that the two policies are equally good (McNemar 1947, binomial form).

    only_a, only_b: episodes which one policy solved and the other did not.
    """
    _check_pairs(only_a, only_b, max(1, only_a + only_b))
    discordant, fewer = only_a + only_b, min(only_a, only_b)
    tail = term = 1
    for k in range(fewer):
        term = term * (discordant - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**discordant)


def _check_pairs(only_a: int, only_b: int, pairs: int) -> None:
    if min(only_a, only_b) < 0 or pairs < max(1, only_a + only_b):
        raise ValueError(f"{only_a} and {only_b} of {pairs} pairs are not counts of pairs")


def paired_bootstrap(only_a: int, only_b: int, pairs: int, seed: int = 0) -> Estimate:
    """The difference in success rate with its bootstrap interval over pairs."""
    _check_pairs(only_a, only_b, pairs)
    shares = np.array([only_a, only_b, pairs - only_a - only_b]) / pairs
    draws = np.random.default_rng(seed).multinomial(pairs, shares, DRAWS)
    differences = (draws[:, 0] - draws[:, 1]) / pairs
    return Estimate((only_a - only_b) / pairs, *_percentiles(differences))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being read side by side in one table (Holm 1979), in their order."""
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie in 0 .. 1, these do not: {list(p_values)!r:.99}")
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def pairs_to_tell_apart(
    only_a: int, only_b: int, pairs: int, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Pairs in all that would show the observed imbalance with this power (Connor 1987)."""
    _check_pairs(only_a, only_b, pairs)
    if only_a == only_b:
        raise ValueError("equal counts cannot be told apart by any number of pairs")
    discordant, gap = (only_a + only_b) / pairs, abs(only_a - only_b) / pairs
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    spread = z_power * math.sqrt(discordant - gap**2)
    return math.ceil(((z_alpha * math.sqrt(discordant) + spread) / gap) ** 2)


# Many checkpoints, several training seeds


def across_trainings(outcomes: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The mean of several trainings of one configuration.

    outcomes: of each training's trials, such as successes or how many subtasks each chain
    completed; trainings may have played different numbers of them. Two-level bootstrap:
    trainings, then trials within them, so the interval speaks about the next training and not
    only about these. With fewer than five it is still too narrow.
    """
    # Sums of larger ones are infinite.
    if not outcomes or not all(len(each) and np.abs(each).max() < 1e100 for each in outcomes):
        raise ValueError("across trainings needs one or more, each with finite outcomes")
    values = np.unique(np.concatenate([np.asarray(each, float) for each in outcomes]))
    counts = np.array([[np.sum(np.asarray(each) == v) for v in values] for each in outcomes])
    trials = counts.sum(axis=1)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(trials), size=(DRAWS, len(trials)))
    shares = counts / trials[:, None]
    drawn = rng.multinomial(trials[chosen], shares[chosen]) @ values / trials[chosen]
    return Estimate(float(np.mean(shares @ values)), *_percentiles(drawn.mean(axis=1)))


class Box(NamedTuple):
    """Figure 4's boxes: quartiles, whiskers at the last point within 1.5 box heights, the rest."""

    low: float
    q1: float
    median: float
    q3: float
    high: float
    outliers: tuple[float, ...]


def box(values: Sequence[float]) -> Box:
    points = np.sort(np.asarray(values, dtype=float))
    if not len(points) or not np.isfinite(points).all():
        raise ValueError("a box needs one or more finite points")
    q1, median, q3 = np.quantile(points, (0.25, 0.5, 0.75))
    reach = 1.5 * (q3 - q1)
    inside = points[(points >= q1 - reach) & (points <= q3 + reach)]
    outside = points[(points < q1 - reach) | (points > q3 + reach)]
    ends = float(inside[0]), float(inside[-1])
    return Box(ends[0], float(q1), float(median), float(q3), ends[1], tuple(outside.tolist()))
