"""Ours beside the paper's: scores as the protocol reports them, differences, and noise.

Values are in the paper's unit: mean chain length (0 to 5) on CALVIN, percent elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from envs.api import Benchmark
from envs.benchmarks import BENCHMARKS
from vlm4vla.analysis import DRAWS, Z95, Estimate, holm, mcnemar, wilson
from vlm4vla.audit import PrintedTable
from vlm4vla.selection import Outcomes, Place, Selection, select

Played = Mapping[tuple[str, int], float]
"""(task, initial state) -> outcome."""
MEASURED, REDUCED, UNFINISHED, BROKEN, MISSING = (
    *("measured", "reduced", "unfinished", "broken", "missing"),
)


def protocol(name: str) -> Benchmark | None:
    """The row of a benchmark, None for one that this code does not know."""
    return BENCHMARKS.get(name)


def chain(benchmark: str) -> int:
    """Subtasks in a row that an episode asks for; 1 also where this code knows no such row."""
    row = protocol(benchmark)
    return 1 if row is None else row.chain


def chained(benchmark: str) -> bool:
    return chain(benchmark) > 1


def unit(benchmark: str) -> float:
    """What an outcome of 0 to 1 is multiplied with to be in the paper's unit."""
    return float(chain(benchmark)) if chained(benchmark) else 100.0


@dataclass(frozen=True)
class Score:
    """What a run reached, in the paper's unit.

    status: "measured" by the whole protocol; "reduced": finished, but with fewer states or
    cells than it; "unfinished", "broken", "missing": there is no result, and note says why.
    best: of the selection (too high, being chosen); confirmed: of the winner, on other states.
    """

    status: str
    note: str = ""
    best: Estimate | None = None
    confirmed: Estimate | None = None
    place: Place | None = None
    of: int = 0
    trials: int = 0


def score(row: Benchmark, cells: Mapping[Place, Outcomes]) -> Score:
    """The protocol's selection over finished cells: states below `row.trials` choose.

    Outcomes are 0 to 1. Cells that were stopped early do not compete, and the note counts them.
    Cells that neither were played on the same states nor can have been stopped have no best,
    and the score says so.
    """
    if not cells:
        return Score(MISSING, "no checkpoint was evaluated")
    choosing = {place: _states(cell, 0, row.trials) for place, cell in cells.items()}
    if not all(choosing.values()):
        return Score(MISSING, "no states of the selection were played")
    try:
        full = _played_to_the_end(choosing)
    except ValueError as error:
        return Score(UNFINISHED, str(error))
    found = select(full, None)
    fresh = _confirmation(row, cells[found.winner])
    if set(fresh) == set(full[found.winner]):
        found = select(full, fresh)
    short = _shortfall(row, full, len(cells))
    stopped = len(cells) - len(full)
    early = f"{stopped} of {len(cells)} cells stopped early" if stopped else ""
    note = ", ".join(filter(None, (short, early)))
    return _scaled(row, found, full, REDUCED if short else MEASURED, note)


def _played_to_the_end(cells: Mapping[Place, Outcomes]) -> dict[Place, Outcomes]:
    """The cells with the most states. ValueError unless the others can have been stopped early:
    on some of these states, and behind another cell there."""
    flat = {
        place: {(task, state): cell[task][state] for task in cell for state in cell[task]}
        for place, cell in cells.items()
    }
    fullest = max((set(played) for played in flat.values()), key=len)
    stopped = {place: played for place, played in flat.items() if set(played) != fullest}
    for place, played in stopped.items():
        if not set(played) <= fullest:
            raise ValueError("a best can only be chosen among cells played on the same states")
        if not any(_no_worse(other, played) for at, other in flat.items() if at != place):
            raise ValueError(
                f"step {place.step} at horizon {place.horizon} is ahead, but has fewer states"
            )
    return {place: cell for place, cell in cells.items() if place not in stopped}


def _no_worse(other: Played, than: Played) -> bool:
    shared = other.keys() & than.keys()
    return bool(shared) and sum(other[k] for k in shared) >= sum(than[k] for k in shared)


def _confirmation(row: Benchmark, cell: Outcomes) -> dict[str, dict[int, float]]:
    """Outcomes on states that took no part in the choice, where the contest plays them."""
    if row.confirmation_from is not None:
        return _states(cell, row.confirmation_from, math.inf)
    return _states(cell, row.trials, row.demonstrations_from)


def _states(cell: Outcomes, first: int, end: float) -> dict[str, dict[int, float]]:
    chosen = {
        task: {state: value for state, value in states.items() if first <= state < end}
        for task, states in cell.items()
    }
    return {task: states for task, states in chosen.items() if states}


def _shortfall(row: Benchmark, full: Mapping[Place, Outcomes], entered: int) -> str:
    """What of the protocol was not done; "" when all was. entered: cells, the stopped too."""
    said = []
    cell = next(iter(full.values()))
    states = min(map(len, cell.values()))
    if states < row.trials:
        said.append(f"{states} of {row.trials} trials per task")
    if len(cell) < len(row.tasks):
        said.append(f"{len(cell)} of {len(row.tasks)} tasks")
    wanted = {(step, horizon) for step in row.recipe.checkpoints for horizon in row.horizons}
    if entered < len(wanted):
        said.append(f"{entered} of {len(wanted)} checkpoint × horizon cells")
    return ", ".join(said)


def _scaled(
    row: Benchmark, found: Selection, cells: Mapping[Place, Outcomes], status: str, note: str
) -> Score:
    factor = unit(row.name)
    trials = sum(map(len, cells[found.winner].values()))
    confirmed = found.confirmed and scaled(found.confirmed, factor)
    best = scaled(found.best, factor)
    return Score(status, note, best, confirmed, found.winner, found.of, trials)


def scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(*(round(factor * value, 10) for value in estimate))


# The paper's numbers, with the noise that its trials leave


def printed(table: PrintedTable, row: str, column: str, benchmark: str) -> Estimate:
    """A printed score with the 95% interval of its number of trials.

    Percentages: Wilson over the protocol's trials. Chain lengths over 1000 sequences: normal,
    with the variance of the printed rates, or where none are printed the largest variance
    that such a mean can have (Bhatia & Davis 2000). The paper's choice of the best checkpoint
    makes its numbers too high on top of this, by an amount it does not tell.
    """
    value = float(table.value(row, column))
    trials = table.trials_of(row, column)
    if chained(benchmark):
        longest = chain(benchmark)
        spread = _chain_variance(table, row, value, longest) / (trials or 1000)
        half = Z95 * math.sqrt(spread)
        return Estimate(value, max(0.0, value - half), min(float(longest), value + half))
    trials = trials or {"simpler": 96, "libero_10": 500}[benchmark]
    low, high = wilson(round(value / 100 * trials), trials)
    return Estimate(value, min(value, 100 * low), max(value, 100 * high))


def _chain_variance(table: PrintedTable, row: str, mean: float, longest: int) -> float:
    """Of the number of completed subtasks: E[L²] is the sum of (2k - 1) · P(L ≥ k)."""
    bound = mean * (longest - mean)
    if not table.chain:
        return bound
    rates = [float(table.value(row, rate)) for rate in table.chain["rates"]]
    square = sum((2 * k - 1) * rate for k, rate in enumerate(rates, 1))
    return min(bound, max(0.0, square - sum(rates) ** 2))


# Differences


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b of independent estimates, from their intervals (Newcombe 1998, method 10)."""
    value = a.value - b.value
    below = math.hypot(a.value - a.low, b.high - b.value)
    above = math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, value - below, value + above)


def p_value(gap: Estimate) -> float:
    """Two-sided p of no difference, read off a 95% interval as if it were normal."""
    side = gap.value - gap.low if gap.value > 0 else gap.high - gap.value
    if side <= 0:
        return 1.0 if gap.value == 0 else 0.0
    return 2 * NormalDist().cdf(-abs(gap.value) / (side / Z95))


def beyond_noise(p_values: Sequence[float], alpha: float = 0.05) -> list[bool]:
    """Which of a table's differences are larger than noise, read side by side (Holm)."""
    return [p < alpha for p in holm(p_values)]


@dataclass(frozen=True)
class Effect:
    """One of our policies minus another on the states both played, in the paper's unit.

    p: exact McNemar where every outcome is 0 or 1; of the bootstrap's interval for chains and
    means of repeats.
    """

    difference: Estimate
    p: float
    pairs: int


def paired_effect(benchmark: str, a: Outcomes, b: Outcomes, seed: int = 0) -> Effect:
    """ValueError when the two share no state."""
    return paired_difference(a, b, unit(benchmark), seed)


def paired_difference(a: Outcomes, b: Outcomes, factor: float, seed: int = 0) -> Effect:
    """a minus b, times factor; ValueError when the two share no state."""
    shared = [(t, s) for t in a for s in a[t] if s in b.get(t, {})]
    if not shared:
        raise ValueError("the two policies share no initial state")
    ours = np.array([a[task][state] for task, state in shared])
    theirs = np.array([b[task][state] for task, state in shared])
    gap = scaled(_bootstrap(ours - theirs, seed), factor)
    if not np.isin([ours, theirs], (0, 1)).all():
        return Effect(gap, p_value(gap), len(shared))
    wins, losses = int(np.sum(ours > theirs)), int(np.sum(ours < theirs))
    return Effect(gap, mcnemar(wins, losses), len(shared))


def _bootstrap(gaps: np.ndarray, seed: int) -> Estimate:
    """The mean of [N] differences with its percentile interval over resampled pairs."""
    values, counts = np.unique(gaps, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(gaps), counts / len(gaps), DRAWS)
    low, high = np.quantile(draws @ values / len(gaps), (0.025, 0.975))
    return Estimate(float(gaps.mean()), float(low), float(high))


def mean_rates(cells: Iterable[Outcomes]) -> list[float]:
    """The mean outcome of each cell: what Figure 4's boxes are drawn over."""
    return [float(np.mean([np.mean(list(task.values())) for task in c.values()])) for c in cells]
