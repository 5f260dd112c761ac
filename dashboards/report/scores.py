"""Scores of stored runs: one per run, its controls, and what stands in the way of a number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dashboards.cells import BROKEN as CELL_BROKEN
from dashboards.cells import UNFINISHED as CELL_UNFINISHED
from dashboards.cells import Cell
from dashboards.runs import Run
from vlm4vla.analysis import Estimate, wilson
from vlm4vla.compare import (
    BROKEN,
    MISSING,
    UNFINISHED,
    Score,
    chain,
    chained,
    mean_rates,
    protocol,
    score,
    unit,
)
from vlm4vla.selection import Outcomes, Place

CONDITIONS = ("fingerprint", "profile", "precision", "protocol", "schema")
"""Fields of a cell between which scores are never pooled or compared."""
OWN, WRONG_WORD = "own", "wrong_word"


@dataclass(frozen=True)
class RunScore:
    """A run's score under one set of conditions, and the winning cell with its outcomes.

    others: further sets of conditions it was evaluated under, kept apart.
    untrained, wrong_word: success of the controls with its interval; None if not played.
    """

    run: Run
    score: Score
    winner: Outcomes
    others: int = 0
    untrained: Estimate | None = None
    wrong_word: Estimate | None = None
    conditions: tuple[object, ...] = ()
    cell: Cell | None = None


def outcomes(cell: Cell) -> Outcomes:
    """0 to 1 each: success, or the completed share of a chain."""
    name = str(cell.fields.get("benchmark"))
    if not chained(name):
        return cell.outcomes()
    return {
        task: {state: value / chain(name) for state, value in states.items()}
        for task, states in cell.outcomes(chained=True).items()
    }


def conditions(cell: Cell) -> tuple[object, ...]:
    return tuple(cell.fields.get(name) for name in CONDITIONS)


def run_score(run: Run) -> RunScore:
    """The run's score; its status says when there is none to be had yet."""
    own = [c for c in run.cells if c.fields.get("instruction_mode") == OWN and run.step_of(c)]
    groups: dict[tuple[object, ...], list[Cell]] = defaultdict(list)
    for cell in own:
        groups[conditions(cell)].append(cell)
    if not groups:
        return RunScore(run, Score(MISSING, _why_no_cells(run)), {})
    chosen = max(groups.values(), key=lambda cells: sum(cell.trials for cell in cells))
    found = _score(run, chosen)
    winner = next((c for c in chosen if _place(run, c) == found.place), None)
    others = len(groups) - 1
    if others:
        said = f"also evaluated under {others} other condition{'s' * (others > 1)}, kept apart"
        found = replace(found, note=f"{found.note}; {said}".removeprefix("; "))
    under = conditions(chosen[0])
    same = [cell for cell in run.cells if conditions(cell) == under]
    if found.place:  # at the winner's horizon, where that was played
        same = [c for c in same if c.fields["horizon"] == found.place.horizon]
    untrained = [c for c in same if c.fields["instruction_mode"] == OWN and not run.step_of(c)]
    confused = [c for c in same if c.fields["instruction_mode"] == WRONG_WORD]
    controls = _control(untrained), _control(confused)
    played = outcomes(winner) if winner else {}
    return RunScore(run, found, played, others, *controls, under, winner)


def _place(run: Run, cell: Cell) -> Place:
    return Place(run.step_of(cell), cell.fields["horizon"])


def _why_no_cells(run: Run) -> str:
    if run.trained:
        return f"trained {run.trained} of {run.steps or '?'} steps, not evaluated yet"
    return "training has no checkpoint yet" if run.metrics else "not trained yet"


def _score(run: Run, cells: Sequence[Cell]) -> Score:
    broken = [cell for cell in cells if cell.status == CELL_BROKEN]
    if broken:
        count = sum(len(cell.problems) for cell in broken)
        return Score(BROKEN, f"{count} stored object(s) cannot be trusted")
    trials = sum(cell.trials for cell in cells)
    if any(cell.status == CELL_UNFINISHED for cell in cells):
        return Score(UNFINISHED, f"{trials} episodes so far", trials=trials)
    row = protocol(run.benchmark)
    if row is None:
        return Score(MISSING, f"benchmark {run.benchmark!r} is unknown to this code")
    found = score(row, {_place(run, cell): outcomes(cell) for cell in cells})
    if run.steps is not None and run.trained < run.steps:
        found = replace(
            found, status=UNFINISHED, note=f"trained {run.trained} of {run.steps} steps"
        )
    return found


def _control(cells: Iterable[Cell]) -> Estimate | None:
    """Success of a control in percent (of a chain: of its first subtask)."""
    sound = [cell for cell in cells if cell.status != CELL_BROKEN and cell.trials]
    if len(sound) != 1:  # several horizons or checkpoints are not one control
        return None
    won, played = sound[0].successes, sound[0].trials
    ends = wilson(won, played, sound[0].states)
    return Estimate(100 * won / played, *(100 * end for end in ends))


def spread(run: Run) -> list[float]:
    """The mean of each finished checkpoint × horizon, in the paper's unit (Figure 4)."""
    cells = [
        cell
        for cell in run.cells
        if cell.status == "complete"
        and cell.fields["instruction_mode"] == OWN
        and run.step_of(cell)
    ]
    groups = {conditions(cell) for cell in cells}
    if len(groups) != 1:  # none, or such as cannot be compared
        return []
    return [unit(run.benchmark) * rate for rate in mean_rates(map(outcomes, cells))]
