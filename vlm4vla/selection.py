"""Which checkpoint and horizon stand behind a reported number, and what it is worth.

The paper reports the best over every checkpoint × horizon (3.3), which is too high because it
was chosen. Beside it stands the winner's score on confirmation states, which took no part.
Outcomes are 0 to 1: success, or the completed share of a CALVIN chain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlm4vla.analysis import Z95, Estimate

Outcomes = Mapping[str, Mapping[int, float]]
"""task -> initial state -> outcome."""


class Place(NamedTuple):
    """A checkpoint's training step, and actions executed before looking again."""

    step: int
    horizon: int


@dataclass(frozen=True)
class Selection:
    """best: the winner's score on the states that chose it. of: places compared.

    confirmed: its score on other states; None until they were played.
    """

    winner: Place
    best: Estimate
    of: int
    confirmed: Estimate | None = None


def select(cells: Mapping[Place, Outcomes], confirmation: Outcomes | None = None) -> Selection:
    """The paper's rule: the highest score; of equals the earlier step, then the longer horizon.

    ValueError when cells were not all played on the same states, or when a confirmation state
    took part in the choice.
    """
    played = [{task: set(states) for task, states in cell.items()} for cell in cells.values()]
    if not played or any(other != played[0] for other in played):
        raise ValueError("a best can only be chosen among cells played on the same states")
    if confirmation is not None:
        _require_fresh(confirmation, played[0])
    winner = min(cells, key=lambda place: (-score(cells[place]), place.step, -place.horizon))
    confirmed = None if confirmation is None else stratified(confirmation)
    return Selection(winner, stratified(cells[winner]), len(cells), confirmed)


def _require_fresh(confirmation: Outcomes, chosen_on: Mapping[str, set[int]]) -> None:
    if set(confirmation) != set(chosen_on):
        raise ValueError("confirmation needs the tasks of the selection, all of them")
    for task, states in confirmation.items():
        shared = chosen_on[task] & set(states)
        if shared:
            raise ValueError(f"{task} #{min(shared)} took part in the choice: it confirms nothing")


def score(outcomes: Outcomes) -> float:
    """The mean of the tasks' means, as the paper averages, rounded against float noise."""
    return round(float(np.mean([np.mean(list(task.values())) for task in outcomes.values()])), 12)


def stratified(outcomes: Outcomes) -> Estimate:
    """The score with its 95% interval, tasks being strata of equal weight.

    Normal, with one success and one failure added to each task for its spread alone, so that
    a task with nothing but successes is not taken for certain.
    """
    tasks = [np.fromiter(task.values(), dtype=float) for task in outcomes.values()]
    errors = [spread(task) / len(task) for task in tasks]
    half = Z95 * math.sqrt(sum(errors)) / len(tasks)
    value = score(outcomes)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def spread(values: np.ndarray) -> float:
    """Variance of one outcome of a task, from at least one, shrunk as `stratified` says."""
    return float(np.var(np.append(values, (0.0, 1.0))))


def confirmation_states(half_width: float, outcomes: Outcomes) -> int:
    """Fresh initial states per task for a 95% interval of score ± half_width.

    outcomes: of the winner so far, from which each task's spread is taken; ValueError unless
    0 < half_width < 1. Equal numbers for all tasks: strata of one size, as in the benchmarks.
    """
    if not 0 < half_width < 1:
        raise ValueError(f"half of an interval's width lies between 0 and 1, not at {half_width}")
    tasks = [np.fromiter(task.values(), dtype=float) for task in outcomes.values()]
    total = sum(map(spread, tasks))
    return math.ceil(total * (Z95 / (half_width * len(tasks))) ** 2)
